/**
 * The ledger: which numbers have arrived, and how. It knows nothing of an event but its number.
 *
 * Events come in the order of their numbers, so one number divides them: up to `settled` every number is live, replayed,
 * excluded (by the patterns) or lost; after it, up to the highest number that is known, all are on their way. A number that
 * is skipped settles too: as excluded if the patterns exclude events, otherwise as lost.
 */

export const LIVE = 1;
export const REPLAYED = 2;
export const EXCLUDED = 3;
export const LOST = 4;
export const MISSING = 5;
export const NAMES = ["", "live", "replayed", "excluded", "lost", "missing"];

const KEPT = 65_536; // numbers whose state is kept

export class Ledger {
  /** True while the patterns exclude events. */
  filtered = false;
  epoch = "";
  /** The first number that counts, or null before any number is known. */
  first = null;
  settled = 0;
  newest = 0;
  #known = 0; // the highest number that certainly exists
  #states = new Uint8Array(KEPT);
  #counts;

  constructor() {
    this.#clear();
  }

  get counts() {
    return { ...this.#counts, missing: this.newest - this.settled };
  }

  get complete() {
    const { lost, repeated, epochs } = this.#counts;
    return lost + repeated + epochs === 0;
  }

  /** The state of a number, or 0 if it is not known (any more). */
  at(number) {
    if (this.first === null || number < this.first || number > this.newest || number <= this.settled - KEPT) return 0;
    return number > this.settled ? MISSING : this.#states[number % KEPT];
  }

  /** The next numbers belong to this epoch. In another one than before, they start at 1. */
  enter(epoch) {
    if (!epoch || epoch === this.epoch) return;
    if (this.epoch && this.first !== null) {
      this.#counts.epochs += 1;
      this.#known = 0;
      this.#begin(0);
    }
    this.epoch = epoch;
  }

  /** Count from after `number`, unless numbers are counted already. */
  start(number) {
    if (this.first === null) this.#begin(number);
  }

  /** Forget everything, and count from after `number`. What is known to exist after it is on its way. */
  reset(number) {
    this.#clear();
    this.#begin(number);
    this.expect(this.#known);
  }

  /** Numbers up to this one exist. */
  expect(number) {
    if (this.first === null) return;
    this.#known = Math.max(this.#known, number);
    this.newest = Math.max(this.newest, number);
  }

  event(number, replayed) {
    this.start(number - 1);
    this.passed(number - 1);
    if (number <= this.settled) this.#counts.repeated += 1;
    else this.#settle(number, replayed ? REPLAYED : LIVE);
  }

  /** Nothing up to `number` will come any more. */
  passed(number) {
    this.start(number);
    this.#settle(number, this.filtered ? EXCLUDED : LOST);
  }

  /** The service says that these are lost; after a replay it says so once later ones have come. */
  gap(from, to) {
    this.start(from - 1);
    this.passed(from - 1);
    const last = Math.min(to, this.settled);
    for (let number = Math.max(from, this.first, last - KEPT + 1); number <= last; number += 1) {
      if (this.at(number) !== EXCLUDED) continue;
      this.#states[number % KEPT] = LOST;
      this.#counts.excluded -= 1;
      this.#counts.lost += 1;
    }
    this.#settle(to, LOST);
  }

  #clear() {
    this.first = null;
    this.settled = this.newest = 0;
    this.#counts = { live: 0, replayed: 0, excluded: 0, lost: 0, repeated: 0, epochs: 0 };
  }

  #begin(number) {
    this.first = number + 1;
    this.settled = this.newest = number;
  }

  #settle(to, state) {
    if (to <= this.settled) return;
    for (let number = Math.max(this.settled + 1, to - KEPT + 1); number <= to; number += 1) {
      this.#states[number % KEPT] = state;
    }
    this.#counts[NAMES[state]] += to - this.settled;
    this.settled = to;
    this.expect(to);
  }
}
