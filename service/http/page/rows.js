// Rows or cards of items, one button each to take one and one for similar items.

import { byId, el, unseen } from "./dom.js";
import { colour } from "./hue.js";

const MOVE_MS = 420;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Rows {
  #place;
  #items;
  #act;
  #rows = new Map();

  /** `act`: {pick(id), similar(id)}. */
  constructor(id, items, act) {
    this.#place = byId(id);
    this.#items = items;
    this.#act = act;
  }

  /** Shows the items of `ids`; `extra(id, place)`: what stands with an item. */
  show(ids, extra = () => ({})) {
    const before = new Map([...this.#rows].map(([id, row]) => [id, row.getBoundingClientRect()]));
    const focused = [...this.#place.children].findIndex((row) => row.contains(document.activeElement));
    const role = focused < 0 ? 0 : [...this.#place.children[focused].querySelectorAll("button")].indexOf(document.activeElement);
    const rows = new Map(ids.map((id, place) => [id, this.#row(id, extra(id, place))]));
    this.#place.replaceChildren(...rows.values());
    this.#rows = rows;
    // The row that had the focus is gone or elsewhere: what stands in its place has it now.
    if (focused >= 0 && rows.size) {
      const row = this.#place.children[Math.min(focused, rows.size - 1)];
      row.querySelectorAll("button")[role]?.focus({ preventScroll: true });
    }
    if (!calm.matches) this.#glide(before);
  }

  /** Why an item is there. */
  explain(id, ...said) {
    this.#rows.get(id)?.querySelector(".why").replaceChildren(...said);
  }

  /** Each from where it was to where it is. */
  #glide(before) {
    for (const [id, row] of this.#rows) {
      const from = before.get(id);
      const to = row.getBoundingClientRect();
      if (!from && !before.size) continue;
      const [x, y] = from ? [from.left - to.left, from.top - to.top] : [0, 0];
      if (from && !x && !y) continue;
      const start = from ? { transform: `translate(${x}px, ${y}px)` } : { opacity: 0, transform: "scale(0.9)" };
      row.animate([start, {}], { duration: MOVE_MS, easing: "cubic-bezier(0.2, 0.8, 0.2, 1)" });
    }
  }

  #row(id, { before = null, after = null, note = null }) {
    const title = this.#items.title(id);
    const categories = this.#items.categories(id);
    const facts = this.#items.facts(id);
    const row = el(
      "li",
      { class: "row" },
      el(
        "button",
        { type: "button", class: "pick", onclick: () => this.#act.pick(id) },
        unseen("Take "),
        this.#art(id, title),
        el(
          "span",
          { class: "said-of" },
          el("span", { class: "title", dir: "auto", title }, title),
          el("span", { class: "categories", dir: "auto", title: categories.join(" · ") || null }, categories.join(" · ") || "\u00a0"),
          el("span", { class: "facts-of" }, ...facts.map(([name, value]) => el("span", { dir: "auto", title: `${name}: ${value}` }, `${name} `, el("b", {}, value)))),
        ),
        note,
      ),
      before,
      after,
      el(
        "button",
        { type: "button", class: "similar", title: "Similar items", onclick: () => this.#act.similar(id) },
        el("span", { "aria-hidden": "true" }, "≈"),
        unseen(`Similar to ${title}`),
      ),
      el("div", { class: "why" }),
    );
    colour(row, categories[0]);
    return row;
  }

  /** A picture of the item, or its first letter on the colour of its category. */
  #art(id, title) {
    const art = el("span", { class: "art", "aria-hidden": "true" }, [...title.trim()][0] ?? "");
    const address = this.#items.image(id);
    if (address) {
      const image = el("img", { src: new URL(address, document.baseURI), alt: "", loading: "lazy", onerror: () => image.remove() });
      art.append(image);
    }
    return art;
  }
}
