// What is known of items: titles, categories and two facts, asked for once.

import { decimal, several } from "./format.js";
import { pairs, segment } from "./service.js";

const AT_ONCE = 100;
const SAMPLED = 3;
const SAMPLE_MS = 800; // a list waits no longer for facts
const FACTS = 2;
const LONGEST = 28; // characters of a fact
const IMAGE = "image";
const NO_FACT = /(^|[_.])(id|ean|gtin|isbn|sku|url|link|uri|image|description)$/i;

export class Items {
  #known = new Map();
  #service;
  #asked = null; // for the names of attributes

  /** `names`: of the attributes that a few items have, in their order. */
  names = [];
  #facts = [];

  constructor(service) {
    this.#service = service;
  }

  title(id) {
    return this.#known.get(id)?.title ?? id;
  }

  categories(id) {
    return this.#known.get(id)?.categories ?? [];
  }

  /** The address of a picture, or null: only one that the page may load. */
  image(id) {
    const image = this.#known.get(id)?.attributes?.[IMAGE];
    return typeof image === "string" && /^(https:\/\/|\/[^/])/.test(image) ? image : null;
  }

  /** [name, value] of the item, as text; at most two. */
  facts(id) {
    const attributes = this.#known.get(id)?.attributes ?? {};
    return this.#facts.filter((name) => isFact(name, attributes[name])).map((name) => [name.replaceAll("_", " "), text(attributes[name])]);
  }

  /** Takes over what an answer says of items. */
  learn(items) {
    for (const { item_id: id, title, categories, attributes } of items) {
      const known = this.#known.get(id);
      this.#known.set(id, {
        title: title ?? known?.title,
        categories: categories ?? known?.categories,
        attributes: attributes ?? known?.attributes,
      });
    }
  }

  /** Resolves once the categories and facts of these are known, as far as anybody knows them. */
  async complete(ids) {
    const missing = [...new Set(ids)].filter((id) => !this.#known.get(id)?.categories);
    if (!missing.length) return;
    await (this.#asked ??= this.#sample(missing.slice(0, SAMPLED)));
    const fields = [...this.#facts, ...this.names.filter((name) => name === IMAGE)];
    for (let start = 0; start < missing.length; start += AT_ONCE) {
      const part = missing.slice(start, start + AT_ONCE);
      const asked = { item_id: part, ...(fields.length && { fields: fields.join(",") }) };
      const { data } = await this.#service.get("items", pairs(asked));
      this.learn(part.map((id) => ({ item_id: id, categories: [] })));
      this.learn(data.items);
    }
  }

  /** Which attributes there are, as a few items have them; where that can't be read, none for now. */
  async #sample(ids) {
    const signal = AbortSignal.timeout(SAMPLE_MS);
    const found = await Promise.allSettled(ids.map((id) => this.#service.get(`items/${segment(id)}`, [], signal)));
    const samples = found.flatMap(({ value }) => (value ? [value.data.attributes] : []));
    if (!samples.length) this.#asked = null; // the next one asks again
    const values = new Map(samples.flatMap((attributes) => Object.entries(attributes)).reverse());
    this.names = [...new Set(samples.flatMap(Object.keys))];
    const telling = this.names.filter((name) => isFact(name, values.get(name)));
    this.#facts = telling.sort((one, other) => isPrice(other) - isPrice(one)).slice(0, FACTS);
  }
}

const isPrice = (name) => /price|preis|cost/i.test(name);
const text = (value) => (typeof value === "number" ? decimal(value, Number.isInteger(value) ? 0 : 2) : String(value));

/** Whether an attribute of this name says something of an item to a person. */
export const tells = (name) => !NO_FACT.test(name) && !name.includes(",");

function isFact(name, value) {
  if (!tells(name)) return false;
  return ["number", "boolean"].includes(typeof value) || (typeof value === "string" && value.length <= LONGEST && !/:\/\//.test(value));
}

/** What a person likes, in words. */
export function listed(names) {
  if (names.length < 2) return names[0] ?? "";
  return `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

export const interactions = (number) => several(number, "interaction");
