/**
 * Event Broadcaster's client for browsers and Node.js: every matching event once and in order, over any number of
 * reconnects to any replica.
 *
 *     import { connect } from "./client.js";
 *     const stream = connect("ws://127.0.0.1:8000/ws/events", { events: ["alert.*"] });
 *     for await (const message of stream) console.log(message.type, message.data);
 *
 * Theory of operation. The stream is in one of five states, which its `status` events announce:
 *
 * - connecting: a connection is being opened. If a position is kept, it is sent along.
 * - replaying: the server sends what was missed. It ends with `resync_ack`, the verdict.
 * - live: events arrive as they are published.
 * - waiting: the connection was lost. It is opened again after a random delay, at most 0.5 s at first and 30 s later.
 * - closed: for good, by `close()` or because the server refused the credentials.
 *
 * Three positions, each an epoch and a number, make it complete. `#seen` is the last event that has arrived; events up to
 * it are repeats and are dropped. `#from` is where a replay started whose verdict is still unknown; the next connection
 * resumes from there, because only the verdict says whether something is lost. `position` is the last message that the
 * reader has taken; it is stored, with the `#from` of that moment, so a page that is loaded again misses nothing that it
 * had not read, verdicts included.
 *
 * The number of an event belongs to the epoch that its connection named last: in `connected`, in `epoch_changed`, which
 * the server sends before a replay of another epoch too, or in the verdict. A replica may be late and name an older epoch
 * at first; `#seen` leaves its own epoch only for an event, a marker or a verdict of another one.
 *
 * A reader that falls behind by 10,000 messages pauses the connection, which resumes once it has caught up. So the
 * memory is bounded, and nothing is lost while the server's history has it.
 */

const FIRST_DELAY = 500;
const LONGEST_DELAY = 30_000;
const GRACE = 1000; // how long after the announced end of a connection the server may take to close it
const HEARTBEAT = 30_000; // the interval, until two heartbeats were seen
const INTERVALS = 3; // the longest of the last ones counts: a page that was busy sees several heartbeats at once
const SHORTEST_HEARTBEAT = 1000;
const LONGEST_HEARTBEAT = 120_000;
const MOST_QUEUED = 10_000;
const MOST_UNVERIFIED = 3; // replays that end before their verdict, until the next one starts at `#seen`
const MOST_PATTERNS = 100;
const LONGEST_PATTERN = 256;
const NOTHING = "-"; // a pattern that no event matches

const UNAUTHORIZED = [1008];
const EXPIRED = [4002, 4003, 401];
const PASSING = [404, 408, 429]; // statuses that may be another one next time; a proxy may know only the WebSocket

/** Connect to an Event Broadcaster and return its stream; see client.d.ts for the options. */
export function connect(url, options = {}) {
  return new Stream(url, options);
}

class Stream extends EventTarget {
  #url;
  #options;
  #patterns; // a set in lower case, or null for everything
  #sent; // the patterns that the server knows
  #seen = { epoch: "", number: null };
  #from = null;
  #unverified = 0;
  #position = null; // with `from`, if the verdict on it was unknown
  #connection = null;
  #attempts = 0;
  #failures = 0; // WebSockets in a row that could not be opened
  #timer = null; // the next connection
  #watch = null; // notices a connection on which nothing arrives
  #intervals = []; // between the last heartbeats
  #heartbeatAt = 0; // on this connection, 0 before the first
  #heardAt = 0;
  #ack = 0;
  #store = null;
  #queue = [];
  #readers = [];
  #listened = false;
  #iterated = false;
  #cleanup = [];

  status = { state: "connecting", reason: "" };

  constructor(url, options) {
    super();
    this.#url = new URL(url, globalThis.location?.href);
    if (!/^(ws|http)s?:$/.test(this.#url.protocol)) throw new TypeError(`not a WebSocket or HTTP URL: ${url}`);
    this.#options = options;
    const query = this.#url.searchParams;
    const events = options.events ?? query.get("events")?.split(",");
    this.#patterns = events?.length ? union(null, events) : null;
    this.#restore(options.resume ?? (query.has("since") ? { epoch: query.get("epoch"), sequence: +query.get("since") } : ""));
    // They belong to this object, or cannot be read by it.
    for (const name of ["events", "since", "epoch", "last_event_id", "format"]) query.delete(name);
    this.#url.hash = "";
    this.#listen("online", () => this.#hurry(true));
    this.#listen("pageshow", () => this.#hurry(false));
    this.#listen("pagehide", () => this.#save());
    this.#listen("visibilitychange", () => globalThis.document.visibilityState === "visible" && this.#hurry(false));
    // Listeners that are added right after `connect` get the first status too.
    queueMicrotask(() => this.status.state === "connecting" && this.#open());
  }

  /** The position of the last message that was read, `{ epoch, sequence }`, or null. */
  get position() {
    return this.#position && { epoch: this.#position.epoch, sequence: this.#position.sequence };
  }

  subscribe(events) {
    if (events.length) this.#change(() => (this.#patterns = union(this.#patterns, events)));
  }

  /** Remove patterns; without a list all of them, which means to receive everything again. */
  unsubscribe(events) {
    this.#change(() => {
      if (!events?.length) this.#patterns = null;
      else if (this.#patterns) {
        for (const pattern of lower(events)) this.#patterns.delete(pattern);
        if (!this.#patterns.size) this.#patterns.add(NOTHING);
      }
    });
  }

  /** Acknowledge an event and all before it; over server-sent events acks cannot be sent, and are ignored. */
  ack(message) {
    // A message of an epoch that has ended may still be in the queue.
    if (this.#position && this.#position.epoch !== this.#seen.epoch) return;
    this.#ack = Math.max(this.#ack, numberOf(message) ?? 0);
    this.#sendAck();
  }

  close() {
    this.#queue = [];
    this.#end("closed by the application");
  }

  addEventListener(type, ...rest) {
    this.#listened ||= type === "message";
    super.addEventListener(type, ...rest);
  }

  [Symbol.asyncIterator]() {
    this.#iterated = true;
    return {
      next: () => this.#next(),
      return: async () => {
        this.#iterated = false;
        return { done: true, value: undefined };
      },
    };
  }

  // Connections.

  #open() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const opening = (this.#connection = { closed: false, opened: false, epoch: "", last: 0 });
    this.#heartbeatAt = 0;
    this.#heardAt = Date.now();
    this.#listenOn(opening);
    this.#become("connecting", "");
    if (opening.closed) return; // by a listener
    this.#credentials().then(
      (credentials) => {
        if (opening.closed) return;
        const { transport = "auto" } = this.#options;
        const sse = transport === "sse" || (transport === "auto" && (this.#failures > 1 || !globalThis.WebSocket));
        this.#sent = new Set(this.#patterns);
        if (sse) this.#openStream(opening, credentials);
        else this.#openSocket(opening, credentials);
      },
      (error) => this.#lost(opening, 0, `the token function failed: ${error?.message ?? error}`),
    );
  }

  async #credentials() {
    const { token, apiKey } = this.#options;
    return { token: typeof token === "function" ? await token() : token, apiKey };
  }

  #address(sse, credentials) {
    const url = new URL(this.#url);
    url.protocol = url.protocol.replace(/^(ws|http)/, sse ? "http" : "ws");
    const base = url.pathname.replace(/\/$/, "").replace(/(\/ws)?\/events$/, "");
    url.pathname = `${base}${sse ? "" : "/ws"}/events`;
    const position = this.#from ?? this.#seen;
    if (this.#patterns) url.searchParams.set("events", [...this.#patterns].join(","));
    if (position.number !== null) url.searchParams.set("since", position.number);
    if (position.number !== null && position.epoch) url.searchParams.set("epoch", position.epoch);
    if (!sse && credentials.token) url.searchParams.set("token", credentials.token);
    return url;
  }

  #openSocket(connection, credentials) {
    const key = credentials.apiKey;
    let socket;
    connection.socket = true;
    try {
      socket = new WebSocket(this.#address(false, credentials), key ? [`api-key-b64.${base64url(key)}`] : []);
    } catch (error) {
      this.#lost(connection, 0, error.message); // a browser's policy, for example
      return;
    }
    connection.send = (message) => socket.readyState === 1 && socket.send(JSON.stringify(message));
    connection.close = () => socket.close();
    socket.onopen = () => {
      connection.opened = true;
      this.#failures = 0;
    };
    socket.onmessage = (event) => this.#receive(connection, event.data);
    socket.onclose = ({ code, reason }) => {
      this.#lost(connection, code, reason || `the connection was closed with code ${code}`);
    };
  }

  async #openStream(connection, credentials) {
    const abort = new AbortController();
    const headers = { Accept: "text/event-stream, application/problem+json" };
    if (credentials.token) headers.Authorization = `Bearer ${credentials.token}`;
    if (credentials.apiKey) headers["X-API-Key"] = credentials.apiKey;
    connection.close = () => abort.abort();
    let status = 0;
    let reason = "the stream has ended";
    try {
      const answer = await fetch(this.#address(true, credentials), { headers, signal: abort.signal, cache: "no-store" });
      if (answer.status === 200) {
        for await (const block of blocks(answer.body)) {
          if (connection.closed) return;
          if (block.data) this.#receive(connection, block.data);
          else {
            this.#heardAt = Date.now();
            if (block.id) this.#heartbeat(connection, ...positionIn(block.id));
          }
        }
        this.#failures = Math.min(this.#failures, 1); // try a WebSocket again
      } else {
        this.#failures = 0;
        status = answer.status;
        connection.retryAfter = 1000 * Number(answer.headers.get("Retry-After") ?? 0);
        const problem = await answer.json().catch(() => ({}));
        reason = `${status} ${problem.detail ?? answer.statusText}`;
      }
    } catch (error) {
      if (connection.closed) return;
      this.#failures = 0;
      reason = error?.message ?? String(error);
    }
    this.#lost(connection, status, reason);
  }

  /** A connection has ended; `code` is a close code, an HTTP status, or 0. */
  #lost(connection, code, reason) {
    if (connection !== this.#connection) return;
    this.#disconnect();
    code = connection.closing ?? code;
    const refused = code >= 400 && code < 500 && ![...EXPIRED, ...PASSING].includes(code);
    const renewable = EXPIRED.includes(code) && typeof this.#options.token === "function";
    if (UNAUTHORIZED.includes(code) || refused || (EXPIRED.includes(code) && !renewable)) {
      this.#end(reason);
      return;
    }
    if (connection.socket && !connection.opened) this.#failures += 1;
    if (this.status.state === "replaying" && ++this.#unverified >= MOST_UNVERIFIED) this.#from = null;
    const drained = connection.drained && !this.#attempts; // the server has chosen the time at random
    this.#retry(drained ? 0 : (connection.retryAfter || 0) + this.#delay(), reason);
  }

  #delay() {
    return Math.random() * Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.#attempts++);
  }

  #retry(delay, reason) {
    this.#timer = setTimeout(() => this.#open(), delay);
    this.#become("waiting", reason, { delay });
  }

  #disconnect() {
    clearTimeout(this.#watch);
    const connection = this.#connection;
    this.#connection = null;
    if (connection) {
      connection.closed = true;
      clearTimeout(connection.timer);
      connection.close?.();
    }
  }

  /** Connect at once: the page has woken up, or the network is back. */
  #hurry(renew) {
    const { state } = this.status;
    const silent = Date.now() - this.#heardAt > this.#patience;
    if (state === "waiting" && this.#timer) this.#open();
    else if (this.#connection && (renew || silent)) {
      this.#disconnect();
      this.#open();
    }
  }

  get #patience() {
    const longest = Math.max(...this.#intervals, SHORTEST_HEARTBEAT);
    return 2.5 * (this.#intervals.length ? Math.min(longest, LONGEST_HEARTBEAT) : HEARTBEAT);
  }

  /** Give a connection up on which nothing arrives for 2½ heartbeats. */
  #listenOn(connection) {
    clearTimeout(this.#watch);
    const left = this.#heardAt + this.#patience - Date.now();
    if (left <= 0) this.#lost(connection, 0, "nothing arrived for 2½ heartbeats");
    else this.#watch = setTimeout(() => this.#listenOn(connection), left);
  }

  #end(reason) {
    clearTimeout(this.#timer);
    this.#disconnect();
    for (const remove of this.#cleanup.splice(0)) remove();
    this.#save();
    this.#become("closed", reason);
    for (const reader of this.#readers.splice(0)) reader({ done: true, value: undefined });
  }

  // Messages.

  #receive(connection, text) {
    if (connection !== this.#connection) return;
    this.#heardAt = Date.now();
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      this.#lost(connection, 0, "what has arrived is not JSON");
      return;
    }
    const number = numberOf(message);
    switch (message.type) {
      case "connected":
        this.#connected(connection, message);
        return;
      case "ping":
        this.#heartbeat(connection, message.epoch, message.lastSeq);
        connection.send?.({ type: "pong" });
        return;
      case "resync_ack":
        this.#verdict(connection, message);
        return;
      case "gap":
        if (!this.#pass(connection.epoch, message.to)) return;
        break;
      case "epoch_changed":
        connection.epoch = message.epoch;
        connection.last = 0;
        if (!this.#enter(message.epoch)) return;
        break;
      case "system.shutdown": {
        connection.drained = true;
        clearTimeout(connection.timer);
        const left = (message.data?.delay_ms ?? 0) + GRACE;
        connection.timer = setTimeout(() => this.#lost(connection, 1012, "the server stops"), left);
        return;
      }
      case "closing":
        connection.closing = message.code;
        return;
      case "error":
        this.#dispatch("error", message);
        if (message.details?.retry_after_ms) {
          // Whatever was refused, the next connection asks for all of it.
          connection.retryAfter = message.details.retry_after_ms;
          this.#lost(connection, 0, message.message);
        }
        return;
      default:
        if (number === undefined) {
          if (message.type !== "service_status") return; // an answer to a command
        } else if (!this.#pass(connection.epoch, number)) return;
    }
    this.#deliver(message, number !== undefined);
  }

  #connected(connection, { epoch, lastSeq }) {
    const kept = this.#seen.number !== null;
    connection.epoch = epoch;
    connection.last = lastSeq;
    if (kept) {
      this.#seen.epoch ||= epoch;
      this.#from ??= { ...this.#seen };
    } else if (epoch) {
      this.#seen = { epoch, number: lastSeq };
      this.#move();
    }
    this.#synchronize();
    if (connection.closed) return; // opened again
    this.#sendAck();
    if (kept) this.#become("replaying", "");
    else this.#live();
  }

  #verdict(connection, ack) {
    connection.epoch = ack.epoch;
    this.#enter(ack.epoch);
    if (ack.gap_too_old) this.#pass(ack.epoch, ack.oldest_available - 1);
    else if (!ack.recovered && !ack.epoch_changed) this.#seen.number = connection.last;
    // After several replays without a verdict, this one is about the last part alone.
    const unknown = this.#unverified >= MOST_UNVERIFIED;
    this.#from = null;
    this.#unverified = 0;
    this.#deliver(unknown ? { ...ack, recovered: false } : ack, false);
    if (!connection.closed && this.status.state === "replaying") this.#live();
  }

  #live() {
    this.#attempts = 0;
    this.#become("live", "");
  }

  /** Go over to an epoch; false if that is no news, because its numbers go on. */
  #enter(epoch) {
    const { epoch: before, number } = this.#seen;
    this.#seen.epoch = epoch;
    // The first epoch that is seen does not make the number void with which the application started.
    if (before === epoch || (!before && number !== null)) return false;
    if (before) this.#seen.number = this.#ack = 0;
    return true;
  }

  /** Move on to a number; false if it was passed before, so what has it is a repeat. */
  #pass(epoch, number) {
    this.#enter(epoch);
    if (this.#seen.number !== null && number <= this.#seen.number) return false;
    this.#seen.number = number;
    return true;
  }

  #heartbeat(connection, epoch, number) {
    if (this.#heartbeatAt) {
      this.#intervals = [...this.#intervals, this.#heardAt - this.#heartbeatAt].slice(-INTERVALS);
      this.#listenOn(connection);
    }
    this.#heartbeatAt = this.#heardAt;
    // Until a replay starts, a late replica is in an epoch that is not the stream's.
    if (!epoch || (this.status.state === "replaying" && epoch !== this.#seen.epoch)) return;
    connection.epoch = epoch;
    this.#pass(epoch, number);
    if (!this.#queue.length) this.#move();
    else this.#queue.at(-1).position = this.#place();
  }

  #deliver(message, event) {
    const position = this.#place();
    const [reader] = this.#readers.splice(0, 1);
    const queued = !reader && (this.#iterated || !this.#listened);
    if (queued) this.#queue.push({ message, position });
    else this.#move(position);
    reader?.({ done: false, value: message });
    this.#dispatch(event ? "message" : message.type, message);
    if (this.#queue.length >= MOST_QUEUED && this.#connection) {
      this.#disconnect();
      this.#become("waiting", `${MOST_QUEUED} messages have not been read yet`);
    }
  }

  #next() {
    const item = this.#queue.shift();
    if (!item) {
      if (this.status.state === "closed") return Promise.resolve({ done: true, value: undefined });
      return new Promise((resolve) => this.#readers.push(resolve));
    }
    this.#move(item.position);
    if (this.status.state === "waiting" && !this.#timer && this.#queue.length < MOST_QUEUED / 2) this.#open();
    return Promise.resolve({ done: false, value: item.message });
  }

  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #become(state, reason, more) {
    if (this.status.state === "closed") return;
    this.status = { state, reason, ...more };
    this.#dispatch("status", this.status);
  }

  // Subscriptions and acks.

  #change(change) {
    change();
    const { state } = this.status;
    if (state === "live" || state === "replaying") this.#synchronize(); // otherwise the next connection has them
  }

  /** Tell the server which patterns have changed since this connection was opened; a stream is opened again. */
  #synchronize() {
    const sent = this.#sent;
    const wanted = this.#patterns ?? new Set();
    if (wanted.size === sent.size && [...wanted].every((pattern) => sent.has(pattern))) return;
    const { send } = this.#connection;
    if (!send) {
      this.#disconnect();
      this.#open();
      return;
    }
    const removed = [...sent].filter((pattern) => !wanted.has(pattern));
    const added = [...wanted].filter((pattern) => !sent.has(pattern));
    // Patterns are added first, so that there is always one: without any, the server would send everything or nothing.
    if (added.length) send({ type: "subscribe", data: { events: added } });
    if (removed.length) send({ type: "unsubscribe", data: this.#patterns ? { events: removed } : {} });
    this.#sent = new Set(wanted);
  }

  #sendAck() {
    if (this.#ack) this.#connection?.send?.({ type: "ack", data: { sequence: this.#ack } });
  }

  // Positions.

  #place() {
    const { epoch, number } = this.#seen;
    return number === null ? null : { epoch, sequence: number, from: this.#from };
  }

  #move(position = this.#place()) {
    this.#position = position;
    if (this.#store && !this.#store.timer) this.#store.timer = setTimeout(() => this.#save(), 250);
  }

  #restore(resume) {
    let position = typeof resume === "object" ? resume : null;
    if (resume === "session") {
      try {
        const storage = globalThis.sessionStorage;
        // Streams with other patterns are at other positions.
        const key = `event-broadcaster:${this.#url.href} ${[...(this.#patterns ?? [])]}`;
        const text = storage.getItem(key);
        this.#store = { storage, key, timer: null };
        position = JSON.parse(text);
      } catch {
        // There is no storage, it may not be used, or what it has is not a position: start with the next event.
      }
    }
    if (!Number.isSafeInteger(position?.sequence) || position.sequence < 0) return;
    this.#seen = { epoch: position.epoch ?? "", number: position.sequence };
    this.#from = position.from ?? null;
    this.#position = this.#place();
  }

  #save() {
    if (!this.#store) return;
    clearTimeout(this.#store.timer);
    this.#store.timer = null;
    try {
      if (this.#position) this.#store.storage.setItem(this.#store.key, JSON.stringify(this.#position));
    } catch {
      // The storage is full: the next page starts with an older position.
    }
  }

  #listen(type, listener) {
    const target = type === "visibilitychange" ? globalThis.document : globalThis;
    if (!target?.addEventListener) return;
    target.addEventListener(type, listener);
    this.#cleanup.push(() => target.removeEventListener(type, listener));
  }
}

/** Parse server-sent events (WHATWG HTML, 9.2.6) into blocks with `id` and `data`. */
async function* blocks(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let block = {};
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line) {
          yield block;
          block = {};
        } else {
          const colon = line.indexOf(":");
          const text = line.slice(colon + 1);
          if (colon > 0) block[line.slice(0, colon)] = text.startsWith(" ") ? text.slice(1) : text;
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function positionIn(id) {
  const colon = id.lastIndexOf(":");
  return [id.slice(0, colon), Number(id.slice(colon + 1))];
}

function numberOf(message) {
  return message.type === "connected" ? undefined : (message.sequence ?? message.seq);
}

/** Add patterns to a set; the server would take a query with one that is invalid for one without any. */
function union(patterns, events) {
  const all = new Set([...(patterns ?? []), ...lower(events)]);
  all.delete(NOTHING);
  const wrong = [...all].find((pattern) => !pattern || pattern.length > LONGEST_PATTERN || pattern.includes(","));
  if (wrong !== undefined) throw new RangeError(`a pattern has 1 to ${LONGEST_PATTERN} characters and no comma: "${wrong}"`);
  if (all.size > MOST_PATTERNS) throw new RangeError(`at most ${MOST_PATTERNS} patterns, not ${all.size}`);
  return all;
}

function lower(events) {
  return (Array.isArray(events) ? events : [events]).map((pattern) => pattern.toLowerCase());
}

function base64url(text) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
