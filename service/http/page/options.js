// What may be asked of a list besides whose it is: filters, diversity, promotions, what was seen;
// and the kind of an interaction.

import { button, byId, el } from "./dom.js";
import { count, several } from "./format.js";
import { tells } from "./items.js";
import { pairs } from "./service.js";

const COUNTED = 1000; // items that counts are of
const MOST_VALUES = 12;
const MOST_FIELDS = 20;
const KEYWORDS = ["and", "or", "not", "in", "has", "true", "false"];

export class Options extends EventTarget {
  #service;
  #items;
  #form = byId("options-form");
  #facets = el("div", { class: "facets" });
  #filled = null;

  /** It loads what there is to choose from when its panel is first opened. */
  constructor(service, items) {
    super();
    this.#service = service;
    this.#items = items;
    const controls = [
      tick("exclude_seen", "Leave out what was taken before", true),
      slide("diversity", "Diversity", 0),
      el("label", {}, "Promote items of ", el("select", { name: "promote" }, el("option", { value: "" }, "none"))),
      slide("promote_share", "in this share of places", 0.2),
      el("label", {}, "Kind of what you take ", el("input", { name: "kind", list: "kinds", placeholder: "none", maxlength: 64, pattern: "[\\w.:\\-]*" })),
      el("datalist", { id: "kinds" }),
    ];
    this.#form.append(this.#facets, el("div", { class: "controls" }, ...controls), el("button", { type: "reset" }, "Reset"));
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.addEventListener("change", (event) => event.target.name !== "kind" && this.#changed());
    this.#form.addEventListener("reset", () => setTimeout(() => this.#changed()));
    byId("options").addEventListener("toggle", () => byId("options").open && (this.#filled ??= this.#fill()));
  }

  /** As POST /recommend takes it; only what differs from the service's own choice. */
  get asked() {
    const given = new FormData(this.#form);
    const [category, filter, promote] = [given.getAll("category"), this.#filter(given), given.get("promote")];
    return {
      ...(category.length && { category }),
      ...(filter && { filter }),
      ...(Number(given.get("diversity")) && { diversity: Number(given.get("diversity")) }),
      ...(promote && { promote: `category = ${quoted(promote)}`, promote_share: Math.max(0.05, Number(given.get("promote_share"))) }),
      ...(given.has("exclude_seen") ? {} : { exclude_seen: false }),
    };
  }

  /** Of an interaction; null: none. */
  get kind() {
    return this.#form.elements.kind.value.trim() || null;
  }

  /** Offers the kinds that some events have. */
  offerKinds(events) {
    const list = byId("kinds");
    const there = new Set([...list.children].map((option) => option.value));
    const kinds = new Set(events.map((event) => event.kind).filter(Boolean));
    list.append(...[...kinds].filter((kind) => !there.has(kind)).map((kind) => el("option", { value: kind })));
  }

  #changed() {
    const number = Object.keys(this.asked).filter((name) => name !== "promote_share").length;
    byId("options-count").textContent = number ? several(number, "choice") : "";
    this.dispatchEvent(new Event("change"));
  }

  #filter(given) {
    const parts = [];
    for (const name of this.#items.names) {
      const values = given.getAll(`is:${name}`);
      if (values.length) parts.push(`${named(name)} in (${values.map((value) => (/^(true|false)$/.test(value) ? value : quoted(value))).join(", ")})`);
      for (const [end, sign] of [["from", ">="], ["to", "<="]]) {
        const bound = given.get(`${end}:${name}`);
        if (bound) parts.push(`${named(name)} ${sign} ${bound}`);
      }
    }
    return parts.join(" and ");
  }

  async #fill() {
    this.#facets.replaceChildren(el("p", { class: "hint" }, "Counting what there is to choose from…"));
    try {
      const names = this.#items.names.filter(tells).slice(0, MOST_FIELDS);
      const { data } = await this.#service.get("items", pairs({ limit: COUNTED, ...(names.length && { fields: names }) }));
      this.#facets.replaceChildren(...this.#sets(data.items, names));
      if (data.next) this.#facets.append(el("p", { class: "hint wide" }, `Counts are of the first ${count(COUNTED)} items by title.`));
    } catch (error) {
      this.#filled = null;
      const again = button("Try again", () => (this.#filled ??= this.#fill()));
      this.#facets.replaceChildren(el("p", { class: "hint" }, `${error.message}: filters can't be shown. `, again));
    }
  }

  #sets(items, names) {
    const categories = counts(items.flatMap((item) => item.categories));
    this.#form.elements.promote.append(...categories.map(([name]) => el("option", { value: name }, name)));
    const sets = categories.length ? [ticks("Category", "category", categories.slice(0, 2 * MOST_VALUES))] : [];
    for (const name of names) {
      const values = items.flatMap((item) => item.attributes?.[name] ?? []);
      const numbers = values.filter((value) => typeof value === "number");
      const found = counts(values.filter((value) => ["string", "boolean"].includes(typeof value)).map(String));
      if (numbers.length && new Set(numbers).size > 1) sets.push(range(name, numbers));
      else if (found.length > 1 && found.length <= MOST_VALUES) sets.push(ticks(name, `is:${name}`, found));
    }
    return sets;
  }
}

/** [value, how often], most often first. */
function counts(values) {
  const found = new Map();
  for (const value of values) found.set(value, (found.get(value) ?? 0) + 1);
  return [...found].sort(([, one], [, other]) => other - one);
}

function ticks(title, name, found) {
  const one = ([value, number]) =>
    el("label", { class: "option" }, el("input", { type: "checkbox", name, value }), el("span", { dir: "auto" }, value), el("span", { class: "muted" }, String(number)));
  return el("fieldset", {}, el("legend", { dir: "auto" }, title.replaceAll("_", " ")), ...found.map(one));
}

function range(name, numbers) {
  const [least, most] = [Math.min(...numbers), Math.max(...numbers)];
  const bound = (end, placeholder) => el("label", {}, `${end} `, el("input", { type: "number", step: "any", name: `${end}:${name}`, placeholder }));
  return el("fieldset", {}, el("legend", { dir: "auto" }, name.replaceAll("_", " ")), bound("from", least), bound("to", most));
}

function tick(name, title, checked) {
  return el("label", { class: "option" }, el("input", { type: "checkbox", name, checked }), title);
}

function slide(name, title, value) {
  return el("label", {}, title, " ", el("input", { type: "range", name, min: 0, max: 1, step: 0.05, value }));
}

const quoted = (text) => `"${text.replace(/[\\"]/g, "\\$&")}"`;
const named = (name) => (/^[a-z_]\w*(\.\w+)*$/i.test(name) && !KEYWORDS.includes(name.toLowerCase()) ? name : `\`${name}\``);
