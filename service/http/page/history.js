// What the list follows from: the newest interactions, and the size of it all.

import { byId, el, terms } from "./dom.js";
import { ago, bytes, count, date } from "./format.js";

const SHOWN = 30;
const AGAIN_MS = 10_000;

export class History {
  #service;
  #items;
  #user;

  constructor(service, items, user) {
    this.#service = service;
    this.#items = items;
    this.#user = user;
    setInterval(() => {
      for (const time of byId("history").querySelectorAll("time")) time.textContent = ago(new Date(time.dateTime));
    }, AGAIN_MS);
  }

  /** Shows the `version` interactions that the service has; the last one's time, ms, or null. */
  async refresh(version) {
    if (!version) {
      this.#show(0, [], [["Known", "nothing, not even a record"]]);
      return null;
    }
    const { id, path } = this.#user;
    const [{ data: found }, { data: page }] = await Promise.all([
      this.#service.get(path),
      this.#service.get(`${path}/history`, [["after", Math.max(0, version - SHOWN)]]),
    ]);
    await this.#items.complete(page.events.map((event) => event.item_id));
    const facts = [
      ["Interactions", count(found.version)],
      ["State in memory", `${bytes(found.state_bytes)}, at any length of history`],
      ["Record in the store", bytes(found.bytes)],
    ];
    if (id === this.#user.id) this.#show(found.version, page.events.reverse(), facts);
    return Date.parse(found.last_time);
  }

  /** Shows events of somebody else, oldest first. */
  async showOf(events) {
    await this.#items.complete(events.map((event) => event.item_id));
    this.#show(events.length, events.toReversed().slice(0, SHOWN), [["Known", "a history of the store's, to look at only"]]);
  }

  /** Says that it can't be read. */
  unread() {
    this.#show(0, [], []);
    byId("history-empty").textContent = "It can't be read just now.";
  }

  #show(version, events, facts) {
    byId("history-empty").hidden = events.length > 0;
    byId("history-empty").textContent = "Nothing yet. The list is what is popular, until you take something.";
    byId("history-count").textContent = version ? count(version) : "";
    byId("history").replaceChildren(
      ...events.map((event) =>
        el(
          "li",
          { value: event.version ?? null },
          el("span", { class: "title", dir: "auto", title: this.#items.title(event.item_id) }, this.#items.title(event.item_id)),
          el("span", { class: "kind" }, event.kind ?? ""),
          el("time", { datetime: event.timestamp, title: date(new Date(event.timestamp)) }, ago(new Date(event.timestamp))),
        ),
      ),
    );
    byId("state").replaceChildren(...terms(facts));
  }
}
