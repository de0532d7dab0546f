/**
 * The list of messages: only the visible rows exist in the page, whatever the number of messages.
 *
 * A listbox (WAI-ARIA): the arrow keys move the selected option, and the list follows new messages while its end is in
 * view. At most `MOST` messages are kept; the oldest go first.
 */

const MOST = 50_000;
const HEIGHT = 28;

export class List {
  #root;
  #space;
  #rows = [];
  #all = [];
  #shown = [];
  #matches = () => true;
  #selected = null;
  #describe;
  #onSelect;
  #follows = true;
  #drawing = false;
  #number = 0;

  /** `describe(item)` returns the texts of a row; `onSelect(item)` is called for the item that was chosen. */
  constructor(root, { describe, onSelect, onFollow }) {
    this.#root = root;
    this.#describe = describe;
    this.#onSelect = onSelect;
    this.#space = document.createElement("div");
    this.#space.className = "space";
    this.#space.setAttribute("role", "presentation");
    root.append(this.#space);
    root.addEventListener("scroll", () => {
      this.#follows = root.scrollHeight - root.scrollTop - root.clientHeight < HEIGHT;
      onFollow(this.#follows);
      this.#draw();
    });
    root.addEventListener("keydown", (event) => this.#key(event));
    root.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.#select(this.#shown[row.index]);
    });
    new ResizeObserver(() => this.#draw()).observe(root);
  }

  get size() {
    return this.#all.length;
  }

  get shown() {
    return this.#shown.length;
  }

  add(items) {
    for (const item of items) {
      item.key = ++this.#number;
      this.#all.push(item);
      if (this.#matches(item)) this.#shown.push(item);
    }
    if (this.#all.length > MOST + 1000) {
      const [oldest] = this.#all.splice(0, this.#all.length - MOST).slice(-1);
      const kept = this.#shown.findIndex((item) => item.key > oldest.key);
      this.#shown.splice(0, kept < 0 ? this.#shown.length : kept);
    }
    this.#draw();
  }

  clear() {
    this.#all = [];
    this.#shown = [];
    this.#selected = null;
    this.#draw();
  }

  filter(matches) {
    this.#matches = matches;
    this.#shown = this.#all.filter(matches);
    this.#draw();
  }

  showNewest() {
    this.#follows = true;
    this.#draw();
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
    this.#select(this.#shown[to]);
    const top = to * HEIGHT;
    if (top < this.#root.scrollTop) this.#root.scrollTop = top;
    else if (top + HEIGHT > this.#root.scrollTop + this.#root.clientHeight) {
      this.#root.scrollTop = top + HEIGHT - this.#root.clientHeight;
    }
  }

  #top() {
    return Math.floor(this.#root.scrollTop / HEIGHT);
  }

  #select(item) {
    if (!item) return;
    this.#selected = item;
    this.#onSelect(item);
    this.#draw();
  }

  #draw() {
    if (this.#drawing) return;
    this.#drawing = true;
    requestAnimationFrame(() => {
      this.#drawing = false;
      this.#space.style.height = `${this.#shown.length * HEIGHT}px`;
      if (this.#follows) this.#root.scrollTop = this.#shown.length * HEIGHT;
      const first = Math.max(0, this.#top());
      const count = Math.min(Math.ceil(this.#root.clientHeight / HEIGHT) + 1, this.#shown.length - first);
      while (this.#rows.length < count) this.#rows.push(newRow(this.#root));
      let active = null;
      this.#rows.forEach((row, place) => {
        row.hidden = place >= count;
        if (row.hidden) return;
        row.index = first + place;
        const item = this.#shown[row.index];
        row.style.transform = `translateY(${row.index * HEIGHT}px)`;
        row.setAttribute("aria-posinset", row.index + 1);
        row.setAttribute("aria-setsize", this.#shown.length);
        const selected = item === this.#selected;
        row.setAttribute("aria-selected", selected);
        if (selected) active = row;
        if (row.key === item.key) return;
        row.key = item.key;
        fill(row, this.#describe(item));
      });
      if (active) this.#root.setAttribute("aria-activedescendant", active.id);
      else this.#root.removeAttribute("aria-activedescendant");
    });
  }
}

let rows = 0;

function newRow(root) {
  const row = document.createElement("div");
  row.className = "row";
  row.id = `row-${++rows}`;
  row.setAttribute("role", "option");
  for (const name of ["time", "number", "type", "text"]) {
    const cell = document.createElement("span");
    cell.className = name;
    row.append(cell);
  }
  root.append(row);
  return row;
}

function fill(row, { time, number, type, text, severity, mark }) {
  const texts = [time, number, type, text];
  texts.forEach((value, index) => (row.children[index].textContent = value));
  for (const [name, value] of Object.entries({ severity, mark })) {
    if (value) row.dataset[name] = value;
    else delete row.dataset[name];
  }
}
