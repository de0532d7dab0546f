/**
 * The list of messages: only the visible rows exist in the page, whatever the number of messages.
 *
 * A listbox (WAI-ARIA): the arrow keys move the selected option, and the list follows new messages while its end is in
 * view. At most `MOST` messages are kept; the oldest go first. A filter is applied in steps of a few milliseconds, one a
 * frame, so that the page stays responsive.
 */

const MOST = 50_000;
const HEIGHT = 28;
const STEP = 8; // milliseconds
const CELLS = ["time", "number", "type", "text"];

export class List {
  #root;
  #space;
  #rows = [];
  #all = [];
  #shown = []; // those of the first `#filtered` of `#all` that match
  #filtered = 0;
  #matches = () => true;
  #selected = null;
  #describe;
  #onSelect;
  #onChange;
  #follows = true;
  #drawing = false;

  /**
   * `describe(item)` returns the texts of a row, `onSelect(item)` is called for the item that was chosen, and `onChange()`
   * when `size`, `shown` or `follows` have changed.
   */
  constructor(root, { describe, onSelect, onChange }) {
    this.#root = root;
    this.#describe = describe;
    this.#onSelect = onSelect;
    this.#onChange = onChange;
    this.#space = document.createElement("div");
    this.#space.className = "space";
    this.#space.setAttribute("role", "presentation");
    root.append(this.#space);
    root.addEventListener("scroll", () => {
      this.#follows = root.scrollHeight - root.scrollTop - root.clientHeight < HEIGHT;
      this.#draw();
    });
    root.addEventListener("keydown", (event) => this.#key(event));
    root.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.#select(row.item);
    });
    new ResizeObserver(() => this.#draw()).observe(root);
  }

  get size() {
    return this.#all.length;
  }

  get shown() {
    return this.#shown.length;
  }

  get follows() {
    return this.#follows;
  }

  add(items) {
    for (const item of items) this.#all.push(item);
    if (this.#all.length > MOST + 1000) this.#dropOldest(this.#all.length - MOST);
    this.#draw();
  }

  clear() {
    this.#all = [];
    this.#shown = [];
    this.#filtered = 0;
    this.#selected = null;
    this.#follows = true;
    this.#draw();
  }

  filter(matches) {
    this.#matches = matches;
    this.#shown = [];
    this.#filtered = 0;
    this.#draw();
  }

  showNewest() {
    this.#follows = true;
    this.#draw();
  }

  #dropOldest(count) {
    const gone = new Set(this.#all.splice(0, count));
    this.#filtered = Math.max(0, this.#filtered - count);
    let hidden = 0;
    while (hidden < this.#shown.length && gone.has(this.#shown[hidden])) hidden += 1;
    this.#shown.splice(0, hidden);
    if (!this.#follows) this.#root.scrollTop -= hidden * HEIGHT;
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.#root.clientHeight / HEIGHT) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const move = moves[event.key];
    if (move === undefined || !this.#shown.length) return;
    event.preventDefault();
    const last = this.#shown.length - 1;
    const at = this.#selected ? this.#shown.indexOf(this.#selected) : -1;
    const start = at < 0 ? (move < 0 ? last + 1 : this.#top() - 1) : at;
    const to = Math.min(last, Math.max(0, start + move));
    const { scrollTop, clientHeight } = this.#root;
    this.#root.scrollTop = Math.max((to + 1) * HEIGHT - clientHeight, Math.min(scrollTop, to * HEIGHT));
    this.#select(this.#shown[to]);
  }

  #top() {
    return Math.floor(this.#root.scrollTop / HEIGHT);
  }

  /** Select an item; the list stays where it is, so that the item does not leave the view. */
  #select(item) {
    this.#selected = item;
    this.#follows = false;
    this.#onSelect(item);
    this.#draw();
  }

  #draw() {
    if (this.#drawing) return;
    this.#drawing = true;
    requestAnimationFrame(() => {
      this.#drawing = false;
      this.#step();
      this.#show();
      this.#onChange();
    });
  }

  #step() {
    const end = performance.now() + STEP;
    while (this.#filtered < this.#all.length) {
      const item = this.#all[this.#filtered++];
      if (this.#matches(item)) this.#shown.push(item);
      if (this.#filtered % 64 === 0 && performance.now() > end) {
        this.#draw();
        return;
      }
    }
  }

  #show() {
    const { length } = this.#shown;
    this.#space.style.height = `${length * HEIGHT}px`;
    if (this.#follows) this.#root.scrollTop = length * HEIGHT;
    const first = Math.max(0, this.#top());
    const count = Math.min(Math.ceil(this.#root.clientHeight / HEIGHT) + 1, length - first);
    while (this.#rows.length < count) this.#rows.push(newRow(this.#root, this.#rows.length));
    let active = null;
    this.#rows.forEach((row, place) => {
      row.hidden = place >= count;
      if (row.hidden) return;
      const index = first + place;
      const item = this.#shown[index];
      if (row.index !== index) {
        row.index = index;
        row.style.transform = `translateY(${index * HEIGHT}px)`;
        row.setAttribute("aria-posinset", index + 1);
      }
      if (row.total !== length) row.setAttribute("aria-setsize", (row.total = length));
      const selected = item === this.#selected;
      if (row.selected !== selected) row.setAttribute("aria-selected", (row.selected = selected));
      if (selected) active = row;
      if (row.item === item) return;
      row.item = item;
      fill(row, this.#describe(item));
    });
    if (active) this.#root.setAttribute("aria-activedescendant", active.id);
    else this.#root.removeAttribute("aria-activedescendant");
  }
}

function newRow(root, number) {
  const row = document.createElement("div");
  row.className = "row";
  row.id = `row-${number}`;
  row.setAttribute("role", "option");
  for (const name of CELLS) {
    const cell = document.createElement("span");
    cell.className = name;
    row.append(cell);
  }
  root.append(row);
  return row;
}

function fill(row, texts) {
  CELLS.forEach((name, index) => (row.children[index].textContent = texts[name]));
  row.lastChild.title = texts.text;
  for (const name of ["severity", "mark", "replay"]) {
    if (texts[name]) row.dataset[name] = texts[name];
    else delete row.dataset[name];
  }
}
