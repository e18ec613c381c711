// Items to take: what is popular, what is found, what is similar to one.

import { byId } from "./dom.js";
import { Rows } from "./rows.js";
import { segment } from "./service.js";

const PAGE = 20;
const TYPING_MS = 120;

export class Picker {
  #service;
  #items;
  #rows;
  #fail;
  #ids = [];
  #next = null;
  #asked = null;
  #typing = 0;

  /** `act`: what rows do; `fail(error, again)`: says what went wrong. */
  constructor(service, items, act, fail) {
    this.#service = service;
    this.#items = items;
    this.#rows = new Rows("picker-list", items, act);
    this.#fail = fail;
    byId("search").addEventListener("input", () => {
      clearTimeout(this.#typing);
      this.#typing = setTimeout(() => this.start(), TYPING_MS);
    });
    byId("search-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    byId("picker-back").addEventListener("click", () => this.start().then(() => byId("search").focus()));
    byId("picker-more").addEventListener("click", () => this.#find(byId("search").value.trim(), this.#next));
  }

  /** What the search box asks for: with nothing in it, what is popular. */
  start() {
    clearTimeout(this.#typing);
    const text = byId("search").value.trim();
    return text ? this.#find(text, null) : this.#popular();
  }

  similar(id) {
    return this.#ask(async (signal) => {
      const { data } = await this.#service.get(`items/${segment(id)}/similar`, [["k", PAGE]], signal);
      await this.#show(`Similar to ${this.#items.title(id)}`, data.items, { back: true });
      byId("picker-back").focus();
    });
  }

  #popular() {
    return this.#ask(async (signal) => {
      const { data } = await this.#service.get("popular", [["k", PAGE]], signal);
      await this.#show(data.source === "recent" ? "Popular of late" : "Popular", data.items, {});
    });
  }

  #find(text, after) {
    return this.#ask(async (signal) => {
      const query = [["q", text], ["limit", PAGE], ...(after ? [["after", after]] : [])];
      const { data } = await this.#service.get("items", query, signal);
      const more = after ? this.#ids : [];
      await this.#show(`Found for “${text}”`, data.items, { more, next: data.next });
    });
  }

  /** Only the newest question is answered. */
  async #ask(question) {
    this.#asked?.abort();
    this.#asked = new AbortController();
    const { signal } = this.#asked;
    try {
      await question(signal);
    } catch (error) {
      if (!signal.aborted) this.#fail(error, () => this.#ask(question));
    }
  }

  async #show(title, items, { back = false, more = [], next = null }) {
    const { signal } = this.#asked;
    this.#items.learn(items);
    this.#ids = [...more, ...items.map((item) => item.item_id)];
    this.#next = next;
    await this.#items.complete(this.#ids);
    signal.throwIfAborted();
    byId("picker-title").textContent = title;
    byId("picker-back").hidden = !back;
    byId("picker-more").hidden = !next;
    byId("picker-empty").hidden = this.#ids.length > 0;
    byId("picker-empty").textContent = "No item has these words in its title, and none has this id.";
    this.#rows.show(this.#ids);
  }
}
