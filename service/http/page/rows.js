// Rows of items, one button each to interact and one for similar items.

import { byId, el, unseen } from "./dom.js";

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

  /** Shows the items of `ids`; `extra(id, place)`: what stands before and after an item. */
  show(ids, extra = () => ({})) {
    const before = new Map([...this.#rows].map(([id, row]) => [id, row.getBoundingClientRect().top]));
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
  explain(id, text) {
    this.#rows.get(id)?.querySelector(".why").replaceChildren(text);
  }

  #glide(before) {
    for (const [id, row] of this.#rows) {
      const from = before.get(id);
      const by = from === undefined ? 0 : from - row.getBoundingClientRect().top;
      if (by) row.animate([{ transform: `translateY(${by}px)` }, {}], { duration: 220, easing: "ease-out" });
      else if (from === undefined && before.size) row.animate([{ opacity: 0 }, {}], { duration: 220 });
    }
  }

  #row(id, { before = null, after = null, note = null }) {
    const title = this.#items.title(id);
    const categories = this.#items.categories(id);
    return el(
      "li",
      { class: "row" },
      before,
      el(
        "button",
        { type: "button", class: "pick", onclick: () => this.#act.pick(id) },
        unseen("Interact with "),
        el("span", { class: "title" }, title),
        el("span", { class: "categories" }, categories.join(" · ") || "\u00a0"),
        note,
        el("span", { class: "why" }),
      ),
      after,
      el(
        "button",
        { type: "button", class: "similar", title: "Similar items", onclick: () => this.#act.similar(id) },
        el("span", { "aria-hidden": "true" }, "≈"),
        unseen(`Similar to ${title}`),
      ),
    );
  }
}
