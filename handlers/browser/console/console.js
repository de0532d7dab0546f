/**
 * The console: a page on the client and the public API alone. This module connects the parts of the page.
 *
 * A message takes this way: the client's loop hands it to `take`, which enters it into the ledger and queues a row. Once a
 * frame, `draw` gives the queued rows to the list and repaints what has changed. Data is only ever set as text.
 */

import { connect } from "../client.js";
import { Ledger, drawChart, drawStrip } from "./ledger.js";
import { List } from "./list.js";
import { PublishForm } from "./publish.js";

const BASE = new URL("../", import.meta.url);
const CUT_SECONDS = 10;
const POINTS = 120;
const HEALTH_SECONDS = 2;

const $ = (id) => document.getElementById(id);

const ledger = new Ledger();
const credentials = { apiKey: "", token: "" };
const rates = [];
const lags = [];
let stream = null;
let patterns = [];
let paused = false;
let arrived = []; // rows for the next frame
let held = []; // rows that came during a pause
let received = 0; // events in this second
let replica = null; // the newest answer of /health
let dirty = true;
let chosen = null;
let settings = {};

// Connections.

function open(resume) {
  stream?.close();
  const url = new URL("ws/events", BASE);
  const mine = (stream = connect(url, {
    events: patterns,
    resume,
    apiKey: credentials.apiKey || undefined,
    token: credentials.token || undefined,
  }));
  mine.addEventListener("status", ({ detail }) => mine === stream && showStatus(detail));
  mine.addEventListener("error", ({ detail }) => note(`The service refused a request: ${detail.message}`));
  read(mine);
}

async function read(mine) {
  for await (const message of mine) {
    if (mine !== stream) return;
    take(message);
  }
}

function showStatus({ state, reason, delay }) {
  const texts = { connecting: "Connecting", replaying: "Replaying", live: "Live", waiting: "Reconnecting", closed: "Closed" };
  $("connection").dataset.state = state;
  $("connection-text").textContent = delay === undefined ? texts[state] : `${texts[state]} in ${Math.ceil(delay / 1000)} s`;
  $("connection").title = reason;
  if (state === "waiting") note(`Connection lost: ${reason}`);
  if (state === "live" || state === "replaying") {
    const { position } = stream;
    if (position) {
      ledger.enter(position.epoch);
      ledger.start(position.sequence);
    }
    if (state === "live") note("Connected: live", "replayed");
  }
  if (state === "closed" && reason !== "closed by the application") askForKey(reason);
  dirty = true;
}

function askForKey(reason) {
  $("key-reason").textContent = reason;
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

$("key-dialog").addEventListener("close", () => {
  credentials.apiKey = $("key").value;
  credentials.token = $("token").value;
  open(stream?.position ?? "memory");
});

// Messages.

function take(message) {
  const { position } = stream;
  const number = message.sequence ?? message.seq;
  switch (message.type) {
    case "gap":
      ledger.gap(message.from, message.to);
      note(`Events ${message.from} to ${message.to} are lost`, "lost");
      break;
    case "epoch_changed":
      ledger.enter(message.epoch);
      note(`The numbering has restarted: epoch ${message.epoch}`, "lost");
      break;
    case "resync_ack":
      ledger.enter(message.epoch);
      if (message.gap_too_old) ledger.gap(message.last_sequence + 1, message.oldest_available - 1);
      if (position) ledger.passed(position.sequence);
      note(verdictOf(message), message.recovered ? "replayed" : "lost");
      break;
    default:
      if (number === undefined) {
        note(`${message.data.service}: ${message.data.message}`);
        break;
      }
      received += 1;
      if (position) ledger.enter(position.epoch);
      ledger.passed(number - 1);
      ledger.event(number, message.replay);
      row({ message, number });
  }
  dirty = true;
}

function verdictOf(ack) {
  if (ack.recovered) return `Resumed after ${ack.last_sequence}: ${ack.replayed_count} events replayed, nothing is missing`;
  if (ack.epoch_changed) return `Resumed in a new epoch: events of the old one may be lost`;
  if (ack.gap_too_old) return `Resumed: events before ${ack.oldest_available} are no longer stored`;
  return "Resumed: whether events are missing cannot be told";
}

function note(text, mark = "note") {
  row({ note: text, mark });
}

function row(item) {
  item.at = Date.now();
  (paused ? held : arrived).push(item);
  if (held.length > 50_000) held.splice(0, 10_000);
  dirty = true;
}

// The list.

const SEVERITY = {
  running: "low", healthy: "low", online: "low", info: "low", low: "low",
  warning: "medium", medium: "medium", degraded: "medium", restarting: "medium", unknown: "medium",
  high: "high", offline: "high", stopped: "high", unhealthy: "high", failed: "high", restart_failed: "high",
  critical: "critical", crashed: "critical", error: "critical",
};

function severityOf({ type, data }) {
  if (type === "worker_status") return /error|failed/.test(data.event_type) ? "high" : "low";
  return SEVERITY[data.severity ?? data.risk_level ?? (type.startsWith("alert") ? "" : data.status)] ?? "low";
}

function textOf({ data }) {
  const told = data.summary ?? data.message ?? data.reason ?? data.description ?? "";
  const who = data.camera_name ?? data.camera_id ?? data.service ?? data.worker_name ?? data.alertname ?? data.id ?? "";
  const what = data.status ?? data.change_type ?? data.label ?? data.severity ?? "";
  return [who, what, told].filter((part) => part !== "" && part !== null).join(" · ") || JSON.stringify(data);
}

function describe(item) {
  const time = new Date(item.at).toTimeString().slice(0, 8);
  if (item.note) return { time, number: "", type: "", text: item.note, mark: item.mark };
  const { message, number } = item;
  return {
    time,
    number,
    type: message.type + (message.replay ? " ↺" : ""),
    text: textOf(message),
    severity: severityOf(message),
  };
}

const list = new List($("list"), {
  describe,
  onSelect: choose,
  onFollow: (follows) => ($("newest").hidden = follows),
});

function choose(item) {
  chosen = item;
  selectTab("event");
  const { message } = item;
  $("event-empty").hidden = Boolean(message);
  $("event").hidden = !message;
  if (!message) return;
  $("event-title").textContent = `${item.number} ${message.type}`;
  $("event-json").textContent = JSON.stringify(message, null, 2);
  $("ack").hidden = !message.requires_ack;
  const trace = message.traceparent?.split("-")[1];
  $("trace").hidden = !(trace && settings.trace_url);
  if (trace && settings.trace_url) $("trace").href = settings.trace_url.replaceAll("{trace_id}", trace);
}

function search() {
  const text = $("search").value.trim().toLowerCase();
  const [, field, value] = /^(\w+)\s*=\s*(.+)$/.exec(text) ?? [];
  if (!text) list.filter(() => true);
  else if (field) {
    list.filter(({ message }) => String(message?.data?.[field] ?? "").toLowerCase().includes(value));
  } else {
    list.filter((item) => (item.note ?? JSON.stringify(item.message)).toLowerCase().includes(text));
  }
  dirty = true;
}

// Controls.

let searching = 0;
$("search").addEventListener("input", () => {
  clearTimeout(searching);
  searching = setTimeout(search, 150);
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  $("pause").textContent = paused ? "Continue" : "Pause";
  if (!paused) arrived.push(...held.splice(0));
  dirty = true;
});
$("clear").addEventListener("click", () => {
  list.clear();
  dirty = true;
});
$("newest").addEventListener("click", () => list.showNewest());
$("patterns-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = $("patterns").value.split(",").map((pattern) => pattern.trim()).filter(Boolean);
  if (wanted.length) {
    stream.subscribe(wanted);
    const gone = patterns.filter((pattern) => !wanted.includes(pattern));
    if (gone.length) stream.unsubscribe(gone);
  } else stream.unsubscribe();
  patterns = wanted;
  note(wanted.length ? `Receiving ${wanted.join(", ")}` : "Receiving every event");
});
$("cut").addEventListener("click", () => {
  const { position } = stream;
  stream.close();
  $("cut").disabled = true;
  note(`The line is cut for ${CUT_SECONDS} s`);
  let left = CUT_SECONDS;
  $("connection").dataset.state = "waiting";
  const count = () => {
    $("connection-text").textContent = `Cut: ${left} s`;
    if (left-- > 0) setTimeout(count, 1000);
    else {
      $("cut").disabled = false;
      open(position ?? "memory");
    }
  };
  count();
});
$("resume-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const sequence = Number($("resume-from").value);
  note(`Resuming from ${sequence}`);
  open({ epoch: stream.position?.epoch ?? "", sequence });
});
$("copy").addEventListener("click", () => navigator.clipboard?.writeText($("event-json").textContent));
$("ack").addEventListener("click", () => {
  stream.ack(chosen.message);
  note(`Acknowledged ${chosen.number}`);
});

// Tabs.

const tabs = [...document.querySelectorAll("[role=tab]")];

function selectTab(name) {
  for (const tab of tabs) {
    const selected = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", selected);
    tab.tabIndex = selected ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !selected;
  }
  if (name === "publish") form.load();
}

const form = new PublishForm(BASE, $("publish"), () => ({
  ...(credentials.apiKey && { "X-API-Key": credentials.apiKey }),
  ...(credentials.token && { Authorization: `Bearer ${credentials.token}` }),
}));

for (const tab of tabs) {
  tab.addEventListener("click", () => selectTab(tab.id.slice(4)));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    selectTab(next.id.slice(4));
    next.focus();
  });
}

// What is drawn once a frame, and what once a second.

function colours() {
  const style = getComputedStyle(document.documentElement);
  const probe = document.createElement("span");
  document.body.append(probe);
  const found = {};
  for (const name of ["live", "replayed", "skipped", "missing", "lost", "accent"]) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return style && found;
}

let palette = colours();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  palette = colours();
  dirty = true;
});
addEventListener("resize", () => (dirty = true));

function draw() {
  requestAnimationFrame(draw);
  if (!dirty) return;
  dirty = false;
  if (arrived.length) list.add(arrived.splice(0));
  const { position } = stream;
  $("position").textContent = position ? position.sequence : "–";
  $("epoch").textContent = position?.epoch || "–";
  for (const [name, count] of Object.entries(ledger.counts)) $(`count-${name}`).textContent = count;
  const { lost, missing, repeated } = ledger.counts;
  const complete = lost === 0 && repeated === 0 && ledger.epochs === 0;
  const events = ledger.counts.live + ledger.counts.replayed;
  $("verdict").dataset.complete = complete;
  $("verdict").textContent = complete
    ? missing
      ? `${missing} on their way`
      : `${events} events, in order, each once, none lost`
    : `${events} events; ${lost} lost, ${repeated} repeated, ${ledger.epochs} new epochs`;
  $("shown").textContent = `${list.shown} of ${list.size} shown${held.length ? `, ${held.length} held` : ""}`;
  drawStrip($("strip"), ledger, palette);
}

setInterval(() => {
  rates.push(received);
  received = 0;
  if (stream.position && stream.status.state === "live" && !arrived.length) ledger.passed(stream.position.sequence);
  lags.push(replica && stream.position ? Math.max(0, replica.sequence - stream.position.sequence) : 0);
  for (const values of [rates, lags]) if (values.length > POINTS) values.shift();
  $("rate").textContent = rates.at(-1);
  $("lag").textContent = lags.at(-1);
  drawChart($("rate-chart"), rates, palette.accent);
  drawChart($("lag-chart"), lags, palette.missing);
  dirty = true;
}, 1000);

async function health() {
  try {
    const answer = await fetch(new URL("health", BASE), { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status === 404 ? "it is served on another port" : `status ${answer.status}`);
    replica = await answer.json();
    if (replica.epoch === ledger.epoch) ledger.expect(replica.sequence);
    $("health-note").textContent = "";
    const { circuit, retry } = replica;
    const facts = {
      status: replica.status,
      connections: replica.connections,
      position: `${replica.sequence} in ${replica.epoch}`,
      Redis: replica.redis,
      listener: replica.listener_healthy ? "healthy" : "not healthy",
      circuit: `${circuit.state}, ${circuit.total_failures} failures, ${circuit.total_successes} successes`,
      publishes: `${retry.successful_broadcasts} accepted, ${retry.failed_broadcasts} failed`,
      retries: Object.values(retry.retry_counts).reduce((sum, count) => sum + count, 0),
    };
    const nodes = Object.entries(facts).flatMap(([name, value]) => {
      const [term, definition] = ["dt", "dd"].map((tag) => document.createElement(tag));
      term.textContent = name;
      definition.textContent = value;
      return [term, definition];
    });
    $("health").replaceChildren(...nodes);
  } catch (error) {
    $("health-note").textContent = `The health of the replica cannot be shown: ${error.message}.`;
  }
  setTimeout(health, HEALTH_SECONDS * 1000);
}

fetch(new URL("console/settings.json", BASE))
  .then((answer) => answer.json())
  .then((found) => (settings = found))
  .catch(() => {});
open("memory");
health();
requestAnimationFrame(draw);
