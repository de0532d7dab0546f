/**
 * The console: a page on the client and the public API alone. This module connects the parts of the page.
 *
 * A message takes this way: the client's loop hands it to `take`, which enters it into the ledger and queues a row. Once a
 * frame, `draw` gives the queued rows to the list and repaints what has changed. Data is only ever set as text.
 */

import { connect } from "../client.js";
import { POINTS, drawChart, drawStrip } from "./charts.js";
import { describe, matching } from "./describe.js";
import { Ledger, NAMES } from "./ledger.js";
import { List } from "./list.js";
import { PublishForm } from "./publish.js";
import { watchReplica } from "./replica.js";

const BASE = new URL("../", import.meta.url);
const MOST_HELD = 50_000;
const NARROW = matchMedia("(max-width: 820px)"); // the details stand below the list, as in console.css

const $ = (id) => document.getElementById(id);

const ledger = new Ledger();
const credentials = { apiKey: "", token: "" };
const rates = [];
const lags = [];
let stream = null;
let line = 0; // the timer of a line that is cut, else 0
let patterns = [];
let paused = false;
let queued = []; // rows for the next frame, or for the end of the pause
let received = 0; // events in this second
let replica = null; // the newest answer of /health
let chosen = null;
let settings = {};

// Connections.

/** Open a connection in place of the one before, after this position; "memory" starts with the next event. */
function open(resume) {
  // Patterns that are not valid throw here, before the present stream is closed.
  const mine = connect(new URL("ws/events", BASE), {
    events: patterns,
    resume,
    apiKey: credentials.apiKey || undefined,
    token: credentials.token || undefined,
  });
  const former = stream;
  stream = null; // its end is not shown
  former?.close();
  stream = mine;
  clearTimeout(line);
  line = 0;
  $("cut").disabled = false;
  let before = "";
  mine.addEventListener("status", ({ detail }) => {
    if (mine !== stream || line) return;
    showStatus(detail, before);
    before = detail.state;
  });
  mine.addEventListener("error", ({ detail }) => note(`The service refused a request: ${detail.message}`));
  read(mine);
}

const reopen = () => open(stream.position ?? "memory");

async function read(mine) {
  for await (const message of mine) {
    if (mine !== stream) return;
    take(message);
  }
}

const STATES = { connecting: "Connecting", replaying: "Replaying", live: "Live", waiting: "Reconnecting", closed: "Closed" };

function showStatus({ state, reason, delay }, before) {
  const { position } = stream;
  showLine(state, delay === undefined ? STATES[state] : `${STATES[state]} in ${Math.ceil(delay / 1000)} s`, reason);
  if (state === "waiting") note(`Connection lost: ${reason}`);
  if (state === "live" && before !== "replaying") note("Connected", "replayed"); // a replay ends with its verdict
  if (position && (state === "live" || state === "replaying")) {
    ledger.enter(position.epoch);
    ledger.start(position.sequence);
  }
  $("key-open").hidden = state !== "closed";
  if (state === "closed") askForKey(reason);
  changed();
}

function showLine(state, text, reason = "") {
  $("connection").dataset.state = state;
  $("connection").title = reason;
  say("connection-text", text);
}

function askForKey(reason) {
  if (reason) $("key-reason").textContent = reason;
  if ($("key-dialog").open) return;
  $("key-dialog").returnValue = "";
  $("key-dialog").showModal();
}

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
      note(`The numbering has restarted in epoch ${message.epoch}`, "lost");
      break;
    case "resync_ack":
      takeVerdict(message, position);
      break;
    default:
      if (number === undefined) {
        note(`${message.data.service}: ${message.data.message}`);
        break;
      }
      received += 1;
      ledger.enter(position?.epoch);
      ledger.event(number, message.replay);
      add({ message, number });
  }
}

function takeVerdict(ack, position) {
  ledger.enter(ack.epoch);
  if (ack.gap_too_old && !ack.epoch_changed) ledger.gap(ack.last_sequence + 1, ack.oldest_available - 1);
  if (position.sequence < ledger.settled) ledger.reset(position.sequence); // it was beyond the newest
  ledger.passed(position.sequence);
  note(verdictOf(ack), ack.recovered ? "replayed" : "lost");
}

function verdictOf(ack) {
  const count = `${ack.replayed_count} ${ack.replayed_count === 1 ? "event" : "events"} replayed`;
  if (ack.recovered) return `Resumed after ${ack.last_sequence}: ${count}, nothing is missing`;
  if (ack.epoch_changed) return `Resumed in another epoch: ${count}, events of the one before may be lost`;
  if (ack.gap_too_old) return `Resumed: ${count}, those before ${ack.oldest_available} are no longer stored`;
  return "Resumed: no event has this number; continuing with the next one";
}

/** A row that is not an event; screen readers announce it. */
function note(text, mark = "note") {
  add({ note: text, mark });
  $("announcement").textContent = text;
}

function add(item) {
  item.at = Date.now();
  queued.push(item);
  if (queued.length > MOST_HELD + 1000) queued.splice(0, queued.length - MOST_HELD); // paused, or not in view
  changed();
}

// The list.

const list = new List($("list"), { describe, onSelect: choose, onChange: showCounts });

function choose(item) {
  chosen = item;
  selectTab("event");
  if (NARROW.matches) document.querySelector("aside").scrollIntoView({ block: "nearest" });
  const { message } = item;
  $("event-empty").hidden = Boolean(message);
  $("event").hidden = !message;
  $("event-empty").textContent = item.note ?? "";
  if (!message) return;
  $("event-title").textContent = `${item.number} ${message.type}`;
  $("event-json").textContent = JSON.stringify(message, null, 2);
  $("copy").textContent = "Copy JSON";
  $("ack").hidden = !message.requires_ack;
  const trace = message.traceparent?.split("-")[1];
  $("trace").hidden = !(trace && settings.trace_url);
  if (trace && settings.trace_url) $("trace").href = settings.trace_url.replaceAll("{trace_id}", trace);
}

function showCounts() {
  const held = paused && queued.length ? `, ${queued.length} held` : "";
  say("shown", `${list.shown} of ${list.size} shown${held}`);
  $("newest").hidden = list.follows;
  const events = ledger.counts.live + ledger.counts.replayed;
  $("empty").hidden = list.shown > 0 && (events > 0 || list.shown > 3);
  $("empty-new").hidden = events > 0;
  $("empty-search").hidden = events === 0 || list.shown > 0 || !list.size;
}

let searching = 0;
$("search").addEventListener("input", () => {
  clearTimeout(searching);
  searching = setTimeout(() => list.filter(matching($("search").value)), 150);
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  changed();
});
$("clear").addEventListener("click", () => list.clear());
$("newest").addEventListener("click", () => {
  list.showNewest();
  $("list").focus();
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("event-json").textContent);
    $("copy").textContent = "Copied";
  } catch {
    // Pages without TLS may not write to the clipboard.
    getSelection().selectAllChildren($("event-json"));
    $("copy").textContent = "Selected: press Ctrl+C";
  }
});
$("ack").addEventListener("click", () => {
  stream.ack(chosen.message);
  note(`Acknowledged ${chosen.number} and all before it`);
});

// What is received.

$("patterns-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const before = patterns;
  patterns = $("patterns").value.split(",").map((pattern) => pattern.trim()).filter(Boolean);
  if (stream.position) ledger.passed(stream.position.sequence);
  try {
    reopen(); // the patterns hold from an exact position on
  } catch (error) {
    patterns = before;
    note(`The patterns were not applied: ${error.message}`);
    return;
  }
  ledger.filtered = patterns.length > 0;
  note(patterns.length ? `Receiving ${patterns.join(", ")}` : "Receiving every event");
});
$("cut").addEventListener("click", () => {
  let left = Number($("cut").dataset.seconds);
  $("cut").disabled = true;
  note(`The line is cut for ${left} s`);
  const count = () => {
    if (left <= 0) {
      reopen();
      return;
    }
    showLine("waiting", `Cut: ${left} s`);
    line = setTimeout(count, 1000);
    left -= 1;
  };
  count();
  stream.close();
});
$("resume-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const sequence = Number($("resume-from").value);
  note(`Resuming from ${sequence}`);
  ledger.reset(sequence);
  open({ epoch: stream.position?.epoch ?? "", sequence });
});
$("key-open").addEventListener("click", () => askForKey(""));
$("key-dialog").addEventListener("close", () => {
  if ($("key-dialog").returnValue !== "use") return;
  credentials.apiKey = $("key").value;
  credentials.token = $("token").value;
  if (stream.status.state === "closed") reopen();
});

// Tabs.

const tabs = [...document.querySelectorAll("[role=tab]")];
const form = new PublishForm(BASE, $("publish"), {
  headers: () => (credentials.apiKey ? { "X-API-Key": credentials.apiKey } : {}),
  onRefused: askForKey,
});

function selectTab(name) {
  for (const tab of tabs) {
    const selected = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", selected);
    tab.tabIndex = selected ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !selected;
  }
  if (name === "publish") form.load();
}

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
$("empty-publish").addEventListener("click", () => {
  selectTab("publish");
  $("tab-publish").focus();
});

// What is drawn once a frame, and what once a second.

function colours() {
  const probe = document.createElement("span");
  document.body.append(probe);
  const found = {};
  for (const name of [...NAMES.slice(1), "accent"]) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return found;
}

let palette = colours();
let awaited = false;

function changed() {
  if (awaited) return;
  awaited = true;
  requestAnimationFrame(draw);
}

function draw() {
  awaited = false;
  if (queued.length && !paused) list.add(queued.splice(0));
  const { position } = stream;
  const { counts } = ledger;
  say("position", position?.sequence ?? "–");
  say("epoch", position?.epoch || "–");
  for (const [name, count] of Object.entries(counts)) if (name !== "epochs") say(`count-${name}`, count);
  $("verdict").dataset.complete = ledger.complete ? (counts.live + counts.replayed ? "true" : "") : "false";
  say("verdict", summaryOf(counts));
  const range = drawStrip($("strip"), ledger, palette);
  say("range", range ? `${range[0]} – ${range[1]}` : "");
  showCounts();
}

function summaryOf({ live, replayed, missing, lost, repeated, epochs }) {
  const events = live + replayed === 1 ? "1 event" : `${live + replayed} events`;
  if (!ledger.complete) {
    const faults = [lost && `${lost} lost`, repeated && `${repeated} repeated`, epochs && `numbering restarted ${epochs} ×`];
    return `${events}; ${faults.filter(Boolean).join(", ")}`;
  }
  if (missing) return `${events}, in order, each once; ${missing} on ${missing === 1 ? "its" : "their"} way`;
  return live + replayed ? `${events}, in order, each once, none lost` : "Nothing has arrived yet";
}

function say(id, text) {
  const node = $(id);
  if (node.textContent !== String(text)) node.textContent = text;
}

function tick() {
  const { position, status } = stream;
  if (position && status.state === "live") ledger.passed(position.sequence);
  // With patterns, what the replica has sent since the last event or heartbeat is not known.
  const known = replica && position && replica.epoch === position.epoch && !ledger.filtered;
  rates.push(received);
  lags.push(known ? Math.max(0, replica.sequence - position.sequence) : null);
  received = 0;
  for (const values of [rates, lags]) if (values.length > POINTS) values.shift();
  say("rate", rates.at(-1));
  say("lag", lags.at(-1) ?? "–");
  if (document.hidden) draw(); // there are no frames
  else drawCharts();
  changed();
}

function drawCharts() {
  drawChart($("rate-chart"), rates, palette.accent);
  drawChart($("lag-chart"), lags, palette.missing);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  palette = colours();
  drawCharts();
  changed();
});
for (const type of ["resize", "visibilitychange"]) {
  addEventListener(type, () => {
    drawCharts();
    changed();
  });
}

fetch(new URL("console/settings.json", BASE))
  .then((answer) => answer.json())
  .then((found) => (settings = found))
  .catch(() => {});
open("memory");
watchReplica(BASE, $("health"), $("health-note"), (report) => {
  replica = report;
  if (report && report.epoch === ledger.epoch && !ledger.filtered) ledger.expect(report.sequence);
  changed();
});
setInterval(tick, 1000);
drawCharts();
