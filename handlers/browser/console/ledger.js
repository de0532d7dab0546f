/**
 * The ledger: which numbers have arrived, and how. It knows of a message only its type and its numbers.
 *
 * Every number from the first one on has one state. `MISSING` are numbers before the position that no event, gap or
 * heartbeat has explained yet; while a connection is live there are none.
 */

export const MISSING = 0;
export const LIVE = 1;
export const REPLAYED = 2;
export const SKIPPED = 3;
export const LOST = 4;

const KEPT = 4096; // the newest numbers, for the strip
const NAMES = ["missing", "live", "replayed", "skipped", "lost"];

export class Ledger {
  constructor() {
    this.epoch = "";
    this.epochs = 0;
    this.counts = { missing: 0, live: 0, replayed: 0, skipped: 0, lost: 0, repeated: 0 };
    this.newest = 0; // the highest number that is known
    this.#restart();
  }

  #restart() {
    this.first = null;
    this.states = new Uint8Array(KEPT);
    this.newest = 0;
    this.counts.missing = 0;
  }

  /** The epoch that the next numbers belong to; another one starts anew. */
  enter(epoch) {
    if (!epoch || epoch === this.epoch) return;
    if (this.epoch) {
      this.epochs += 1;
      this.#restart();
    }
    this.epoch = epoch;
  }

  /** Numbering is known up to `number`: the client starts there, or resumes from there. */
  start(number) {
    if (this.first === null) {
      this.first = number + 1;
      this.newest = number;
    }
  }

  /** The replica stands at `number`; what lies between is on its way. */
  expect(number) {
    if (this.first !== null) this.#reach(number);
  }

  event(number, replayed) {
    this.start(number - 1);
    if (number < this.first || (number <= this.newest && this.at(number) !== MISSING)) {
      this.counts.repeated += 1;
      return;
    }
    this.#reach(number);
    this.#set(number, replayed ? REPLAYED : LIVE);
  }

  /** Everything up to `number` was sent: what has not arrived was excluded by the patterns. */
  passed(number) {
    this.#explain(this.first ?? number + 1, number, SKIPPED);
  }

  gap(from, to) {
    this.start(from - 1);
    this.#explain(from, to, LOST);
  }

  at(number) {
    return number > this.newest - KEPT && number <= this.newest ? this.states[number % KEPT] : SKIPPED;
  }

  #explain(from, to, state) {
    this.start(to);
    this.#reach(to);
    if (!this.counts.missing && state === SKIPPED) return;
    for (let number = Math.max(from, this.newest - KEPT + 1); number <= to; number += 1) {
      if (this.at(number) === MISSING) this.#set(number, state);
    }
  }

  #reach(number) {
    if (number <= this.newest) return;
    const far = Math.min(number - this.newest, KEPT);
    for (let index = 0; index < far; index += 1) this.states[(number - index) % KEPT] = MISSING;
    this.counts.missing += number - this.newest;
    this.newest = number;
  }

  #set(number, state) {
    this.states[number % KEPT] = state;
    this.counts.missing -= 1;
    this.counts[NAMES[state]] += 1;
  }
}

/** Draw the newest numbers, one cell each, the newest at the right. */
export function drawStrip(canvas, ledger, colours) {
  const scale = globalThis.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * scale);
  const height = Math.round(canvas.clientHeight * scale);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  if (ledger.first === null) return;
  const cell = Math.max(3, Math.round(5 * scale));
  const room = Math.floor(width / cell);
  const from = Math.max(ledger.first, ledger.newest - room + 1);
  for (let number = from; number <= ledger.newest; number += 1) {
    const state = ledger.at(number);
    context.fillStyle = colours[NAMES[state]];
    const tall = state === SKIPPED ? 0.3 : state === MISSING ? 0.6 : 0.86;
    const x = width - (ledger.newest - number + 1) * cell;
    context.fillRect(x, height * (1 - tall) * 0.5, cell - Math.max(1, scale), height * tall);
  }
}

/** Draw values as a small area chart. */
export function drawChart(canvas, values, colour) {
  const scale = globalThis.devicePixelRatio || 1;
  const width = Math.round(120 * scale);
  const height = Math.round(28 * scale);
  if (canvas.width !== width) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const top = Math.max(1, ...values);
  const step = width / 119;
  context.beginPath();
  values.forEach((value, index) => {
    const x = width - (values.length - 1 - index) * step;
    context[index ? "lineTo" : "moveTo"](x, height - 2 - (height - 4) * (value / top));
  });
  context.strokeStyle = colour;
  context.lineWidth = 1.5 * scale;
  context.stroke();
  context.lineTo(width, height);
  context.lineTo(width - (values.length - 1) * step, height);
  context.globalAlpha = 0.15;
  context.fillStyle = colour;
  context.fill();
  context.globalAlpha = 1;
}
