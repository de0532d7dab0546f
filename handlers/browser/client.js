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
 * reader has taken; it is what is stored, so a page that is loaded again misses nothing that it had not read.
 *
 * A reader that falls behind by 10,000 messages pauses the connection, which resumes once it has caught up. So the
 * memory is bounded, and nothing is lost while the server's history has it.
 */

const FIRST_DELAY = 500;
const LONGEST_DELAY = 30_000;
const HEARTBEAT = 30_000; // the interval, until two heartbeats were seen
const SHORTEST_HEARTBEAT = 1000;
const LONGEST_HEARTBEAT = 120_000;
const MOST_QUEUED = 10_000;
const MOST_UNVERIFIED = 3; // replays that end before their verdict, until the next one starts at `#seen`
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
  #replica = 0; // `lastSeq` of `connected`
  #position = null;
  #connection = null;
  #attempts = 0;
  #failures = 0; // WebSockets in a row that could not be opened
  #timer = null; // the next connection
  #watch = null; // notices a connection on which nothing arrives
  #interval = 0; // of the heartbeats, 0 until it was measured
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
    this.#options = options;
    this.#patterns = options.events?.length ? new Set(lower(options.events)) : null;
    this.#restore(options.resume ?? "memory");
    this.#listen("online", () => this.#hurry(true));
    this.#listen("pageshow", () => this.#hurry(false));
    this.#listen("pagehide", () => this.#save());
    this.#listen("visibilitychange", () => globalThis.document.visibilityState === "visible" && this.#hurry(false));
    // Listeners that are added right after `connect` get the first status too.
    queueMicrotask(() => this.status.state === "connecting" && this.#open());
  }

  /** The position of the last message that was read, `{ epoch, sequence }`, or null. */
  get position() {
    return this.#position;
  }

  subscribe(events) {
    this.#change(() => {
      this.#patterns = new Set([...(this.#patterns ?? []), ...lower(events)]);
      this.#patterns.delete(NOTHING);
    });
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
    this.#ack = Math.max(this.#ack, numberOf(message) ?? 0);
    this.#sendAck();
  }

  close() {
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
    this.#become("connecting", "");
    const opening = (this.#connection = { closed: false });
    this.#credentials().then(
      (credentials) => {
        if (opening.closed) return;
        const { transport = "auto" } = this.#options;
        const sse = transport === "sse" || (transport === "auto" && (this.#failures > 1 || !globalThis.WebSocket));
        this.#sent = new Set(this.#patterns);
        this.#heartbeatAt = 0;
        if (sse) this.#openStream(opening, credentials);
        else this.#openSocket(opening, credentials);
      },
      (error) => opening.closed || this.#lost(opening, 0, `the token function failed: ${error?.message ?? error}`),
    );
    this.#heardAt = Date.now();
    this.#listenOn(opening, this.#patience);
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
    const socket = new WebSocket(this.#address(false, credentials), key ? [`api-key-b64.${base64url(key)}`] : []);
    let opened = false;
    connection.send = (message) => socket.readyState === 1 && socket.send(JSON.stringify(message));
    connection.close = () => socket.close();
    socket.onopen = () => {
      opened = true;
      this.#failures = 0;
    };
    socket.onmessage = (event) => this.#receive(connection, event.data);
    socket.onclose = (event) => {
      if (!opened) this.#failures += 1;
      this.#lost(connection, event.code, event.reason || `the connection was closed with code ${event.code}`);
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
            if (block.id) this.#heartbeat(...positionIn(block.id));
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
    if (this.status.state === "closed") return;
    code = connection.closing ?? code;
    const refused = code >= 400 && code < 500 && ![...EXPIRED, ...PASSING].includes(code);
    const renewable = EXPIRED.includes(code) && typeof this.#options.token === "function";
    if (UNAUTHORIZED.includes(code) || refused || (EXPIRED.includes(code) && !renewable)) {
      this.#end(reason);
      return;
    }
    if (this.#from && ++this.#unverified >= MOST_UNVERIFIED) this.#from = null;
    if (connection.drained && !this.#attempts) this.#retry(0, reason);
    else this.#retry(Math.max(connection.retryAfter || 0, this.#delay()), reason);
  }

  #delay() {
    return Math.random() * Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.#attempts++);
  }

  #retry(delay, reason) {
    this.#become("waiting", reason, { delay });
    this.#timer = setTimeout(() => this.#open(), delay);
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
    else if ((state === "live" || state === "replaying") && (renew || silent)) {
      this.#disconnect();
      this.#open();
    }
  }

  get #patience() {
    return 2.5 * (this.#interval || HEARTBEAT);
  }

  /** Give a connection up on which nothing arrives for 2½ heartbeats. */
  #listenOn(connection, delay) {
    this.#watch = setTimeout(() => {
      const left = this.#heardAt + this.#patience - Date.now();
      if (left > 0) this.#listenOn(connection, left);
      else this.#lost(connection, 0, "nothing arrived for 2½ heartbeats");
    }, delay);
  }

  #end(reason) {
    clearTimeout(this.#timer);
    this.#disconnect();
    for (const remove of this.#cleanup.splice(0)) remove();
    this.#save();
    if (this.status.state !== "closed") this.#become("closed", reason);
    for (const reader of this.#readers.splice(0)) reader({ done: true, value: undefined });
  }

  // Messages.

  #receive(connection, text) {
    if (connection !== this.#connection) return;
    this.#heardAt = Date.now();
    const message = JSON.parse(text);
    const number = numberOf(message);
    switch (message.type) {
      case "connected":
        this.#connected(message);
        return;
      case "ping":
        this.#heartbeat(message.epoch, message.lastSeq);
        connection.send?.({ type: "pong" });
        return;
      case "resync_ack":
        this.#verdict(message);
        return;
      case "gap":
        this.#seen.number = Math.max(this.#seen.number ?? 0, message.to);
        break;
      case "epoch_changed":
        this.#enter(message.epoch);
        break;
      case "system.shutdown":
        connection.drained = true;
        // The server closes the connection by then; a moment later, do not wait for it any longer.
        connection.timer = setTimeout(() => this.#lost(connection, 1012, "the server stops"), message.data.delay_ms + 1000);
        return;
      case "closing":
        connection.closing = message.code;
        connection.drained = message.code === 1012;
        return;
      case "error":
        if (message.details?.retry_after_ms) {
          setTimeout(() => this.#send(this.#sent, true), message.details.retry_after_ms);
        }
        this.#dispatch("error", message);
        return;
      default:
        if (number === undefined) {
          if (message.type !== "service_status") return; // an answer to a command
        } else if (this.#seen.number !== null && number <= this.#seen.number) return; // a repeat
        else this.#seen.number = number;
    }
    this.#deliver(message, number !== undefined);
  }

  #connected({ epoch, lastSeq }) {
    this.#replica = lastSeq;
    const kept = this.#seen.number !== null;
    if (kept) this.#from ??= { ...this.#seen };
    if (epoch && kept) this.#enter(epoch);
    else if (epoch) {
      this.#seen = { epoch, number: lastSeq };
      this.#move();
    }
    const connection = this.#connection;
    this.#synchronize();
    if (connection !== this.#connection) return; // opened again
    this.#sendAck();
    if (kept) this.#become("replaying", "");
    else this.#live();
  }

  #verdict(ack) {
    const lost = !ack.recovered;
    this.#enter(ack.epoch);
    if (lost && !ack.gap_too_old && !ack.epoch_changed) this.#seen.number = this.#replica;
    // After several replays without a verdict, this one is about the last part alone.
    const unknown = this.#unverified >= MOST_UNVERIFIED;
    this.#from = null;
    this.#unverified = 0;
    this.#deliver(unknown ? { ...ack, recovered: false } : ack, false);
    this.#live();
  }

  #live() {
    this.#attempts = 0;
    this.#become("live", "");
  }

  #enter(epoch) {
    // The first epoch that is seen does not make the number void with which the application started.
    if (this.#seen.epoch && this.#seen.epoch !== epoch) {
      this.#seen.number = 0;
      this.#ack = 0;
    }
    this.#seen.epoch = epoch;
  }

  #heartbeat(epoch, number) {
    if (this.#heartbeatAt) {
      // The longest one counts: a page that was busy sees several at once.
      const longest = Math.max(this.#interval, this.#heardAt - this.#heartbeatAt, SHORTEST_HEARTBEAT);
      this.#interval = Math.min(longest, LONGEST_HEARTBEAT);
    }
    this.#heartbeatAt = this.#heardAt;
    if (!epoch) return;
    this.#enter(epoch);
    this.#seen.number = Math.max(this.#seen.number ?? 0, number);
    if (!this.#queue.length) this.#move();
    else this.#queue.at(-1).position = this.#place();
  }

  #deliver(message, event) {
    const position = this.#place();
    this.#dispatch(event ? "message" : message.type, message);
    const [reader] = this.#readers.splice(0, 1);
    if (reader) {
      this.#move(position);
      reader({ done: false, value: message });
    } else if (this.#iterated || !this.#listened) {
      this.#queue.push({ message, position });
      if (this.#queue.length >= MOST_QUEUED && this.#connection) {
        this.#disconnect();
        this.#become("waiting", `${MOST_QUEUED} messages have not been read yet`);
      }
    } else this.#move(position);
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
    if (this.#connection.send) this.#send(this.#patterns, false);
    else {
      this.#disconnect();
      this.#open();
    }
  }

  /** Tell the server of the patterns that it does not know yet, with `again` of all. */
  #send(patterns, again) {
    const known = again ? new Set() : this.#sent;
    const send = this.#connection?.send;
    if (!send) return;
    const removed = [...known].filter((pattern) => !patterns?.has(pattern));
    const added = [...(patterns ?? [])].filter((pattern) => !known.has(pattern));
    // Patterns are added first, so that the last one is never removed by name: that would stop all events.
    if (added.length) send({ type: "subscribe", data: { events: added } });
    if (removed.length) send({ type: "unsubscribe", data: patterns ? { events: removed } : {} });
    this.#sent = new Set(patterns);
  }

  #sendAck() {
    if (this.#ack) this.#connection?.send?.({ type: "ack", data: { sequence: this.#ack } });
  }

  // Positions.

  #place() {
    const { epoch, number } = this.#seen;
    return number === null ? null : { epoch, sequence: number };
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
        const { href } = this.#url;
        this.#store = { storage, key: `event-broadcaster:${href}`, timer: null };
        position = JSON.parse(storage.getItem(this.#store.key));
      } catch {
        this.#store = null; // no storage, or none that may be used
      }
    }
    if (Number.isSafeInteger(position?.sequence)) {
      this.#seen = { epoch: position.epoch ?? "", number: position.sequence };
      this.#position = this.#place();
    }
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

function lower(events) {
  return (Array.isArray(events) ? events : [events]).map((pattern) => pattern.toLowerCase());
}

function base64url(text) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
