// Users: who is there, what is known of one, taking it away and out.

import { asks, button, el } from "./dom.js";
import { ago, bytes, count, date, decimal, several, span } from "./format.js";
import { facts, openers, Said, sides } from "./operator.js";
import { segment } from "./service.js";

const AT_ONCE = 50;
const MOST_LOOKS = 20; // pages that may be empty, for one click
const SHOWN = 200;
const EXPORTED = 10_000;
const GAP_S = 3600;

const path = (id) => `users/${segment(id)}`;

export class View {
  #said = new Said("Find users by what their ids begin with, or open one by its whole id.");
  #list = el("ul", { class: "found" });
  #more = button("More", () => this.#look(), { hidden: true });
  #input = el("input", { id: "users-id", maxlength: "256", autocomplete: "off", spellcheck: "false", dir: "auto" });
  #person = el("section", { class: "panel", hidden: true, "aria-label": "User" });
  #next = null;
  #listing;
  #service;
  #items;

  constructor({ adminKey, key, items }) {
    this.#listing = this.#said.service(adminKey);
    this.#service = this.#said.service(key);
    this.#items = items;
  }

  show(panel) {
    if (panel.children.length) return;
    const form = el("form", { class: "row-of", onsubmit: (event) => this.#find(event) },
      el("label", { for: "users-id" }, "User id"),
      this.#input,
      el("button", { class: "primary" }, "Find"),
      button("Open", () => this.#open(this.#input.value.trim())));
    panel.append(this.#said.node, sides(this.#person, form, this.#list, this.#more));
  }

  #find(event) {
    event.preventDefault();
    this.#next = null;
    this.#list.replaceChildren();
    return this.#look();
  }

  #look() {
    const start = this.#input.value.trim();
    return this.#said.during("Looking…", async () => {
      const found = [];
      for (let looks = 0; looks < MOST_LOOKS && found.length < AT_ONCE; looks++) {
        const after = this.#next ? [["after", this.#next]] : [];
        const { data } = await this.#listing.get("users", [["limit", AT_ONCE], ...(start ? [["starting_with", start]] : []), ...after]);
        found.push(...data.users);
        this.#next = data.next;
        if (!data.next) break;
      }
      this.#list.append(...openers(found.map((one) => this.#row(one))));
      this.#more.hidden = !this.#next;
      const shown = this.#list.children.length;
      this.#said.say(this.#next ? `${several(shown, "user")} so far.` : shown ? `${several(shown, "user")}; these are all.` : start ? `No id begins with ${start}.` : "The store has no users yet.");
    });
  }

  #row({ user_id: id, version, last_time: last }) {
    const note = version === null ? "its record is damaged" : `${several(version, "interaction")}, the last ${ago(new Date(last))}`;
    return [id, note, () => this.#open(id)];
  }

  #open(id) {
    if (!id) return this.#said.say("Write an id first.");
    return this.#said.during(`Reading what is known of ${id}…`, async () => {
      this.#person.hidden = true;
      const { data: known } = await this.#service.get(path(id));
      const events = await this.#events(id, Math.max(0, known.version - SHOWN), SHOWN);
      this.#person.hidden = false;
      this.#person.replaceChildren(...this.#parts(known, events.reverse()));
      this.#said.say("");
      this.#person.scrollIntoView({ block: "nearest" });
    });
  }

  async #events(id, after, limit) {
    const { data } = await this.#service.get(`${path(id)}/history`, [["after", after], ["limit", limit]]);
    await this.#items.complete(data.events.map((event) => event.item_id));
    return data.events;
  }

  #parts(known, events) {
    const id = known.user_id;
    const line = el("ol", { class: "timeline" }, ...this.#line(events));
    const earlier = button("Earlier ones", () => more(), { hidden: events.at(-1)?.version <= 1 });
    let oldest = events.at(-1);
    const more = () => this.#said.during("Reading…", async () => {
      const before = await this.#events(id, Math.max(0, oldest.version - 1 - SHOWN), Math.min(SHOWN, oldest.version - 1));
      line.append(...this.#line(before.reverse(), oldest));
      oldest = before.at(-1) ?? oldest;
      earlier.hidden = !before.length || oldest.version <= 1;
      this.#said.say("");
    });
    return [
      el("h2", { class: "big", dir: "auto" }, id),
      facts([
        ["Interactions", count(known.version) + (known.history_truncated ? ", of which the oldest are no longer kept" : "")],
        ["The last", `${ago(new Date(known.last_time))}, ${date(new Date(known.last_time))}`],
        ["State", `${bytes(known.state_bytes)} in memory, at any length of history`],
        ["Record", `${bytes(known.bytes)} in the store`],
        ["Answered by", known.edition],
      ]),
      button("Export as JSON", () => this.#export(id)),
      button("Erase", () => this.#ask(id), { class: "danger" }),
      el("h3", {}, "History, the newest first"),
      line,
      earlier,
    ];
  }

  /** Interactions, the newest first, with the gaps between them; `later`: the one that came after. */
  #line(events, later = null) {
    return events.flatMap((event, place) => {
      const next = place ? events[place - 1] : later;
      const gap = next ? (Date.parse(next.timestamp) - Date.parse(event.timestamp)) / 1000 : 0;
      const about = [event.kind, event.weight !== null && event.weight !== undefined && event.weight !== 1 ? `weight ${decimal(event.weight)}` : null].filter(Boolean);
      const row = el("li", {},
        el("span", { class: "title", dir: "auto" }, this.#items.title(event.item_id)),
        about.length ? el("span", { class: "chip" }, about.join(", ")) : null,
        el("time", { datetime: event.timestamp }, date(new Date(event.timestamp))));
      return gap >= GAP_S ? [el("li", { class: "gap" }, `${span(gap)} without any`), row] : [row];
    });
  }

  #export(id) {
    return this.#said.during("Reading the whole history…", async () => {
      const events = [];
      for (let after = 0; after !== null; ) {
        const { data } = await this.#service.get(`${path(id)}/history`, [["after", after], ["limit", EXPORTED]]);
        events.push(...data.events);
        after = data.next;
      }
      const file = new Blob([JSON.stringify({ user_id: id, events }, null, 1)], { type: "application/json" });
      const link = el("a", { href: URL.createObjectURL(file), download: `${id.replace(/[^\w.-]+/g, "_")}.json` });
      link.click();
      URL.revokeObjectURL(link.href);
      this.#said.say(`${several(events.length, "interaction")} exported.`);
    });
  }

  #ask(id) {
    const said = `All interactions of ${id}, and everything computed from them, will be gone for good.`;
    asks({ title: "Erase this user?", said, yes: "Erase" }, () => this.#said.during("Erasing…", async () => {
      const { data } = await this.#service.delete(path(id));
      this.#person.hidden = true;
      for (const row of [...this.#list.children]) if (row.querySelector(".title").textContent === id) row.remove();
      this.#said.say(data.erased ? `${id} is erased.` : `Nothing was known of ${id}.`);
    }));
  }
}
