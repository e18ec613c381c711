// What is kept of the user: the newest interactions, and the size of it all.

import { byId, el } from "./dom.js";
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
      this.#show(null, []);
      return null;
    }
    const { id, path } = this.#user;
    const [{ data: found }, { data: page }] = await Promise.all([
      this.#service.get(path),
      this.#service.get(`${path}/history`, [["after", Math.max(0, version - SHOWN)]]),
    ]);
    await this.#items.complete(page.events.map((event) => event.item_id));
    if (id === this.#user.id) this.#show(found, page.events.reverse());
    return Date.parse(found.last_time);
  }

  #show(found, events) {
    const list = byId("history");
    byId("history-empty").hidden = events.length > 0;
    byId("history-count").textContent = found ? count(found.version) : "";
    list.replaceChildren(
      ...events.map((event) =>
        el(
          "li",
          { value: event.version },
          el("span", { class: "title" }, this.#items.title(event.item_id)),
          el("time", { datetime: event.timestamp, title: date(new Date(event.timestamp)) }, ago(new Date(event.timestamp))),
        ),
      ),
    );
    const facts = found
      ? [
          ["Interactions", count(found.version)],
          ["State in memory", `${bytes(found.state_bytes)}, at any length of history`],
          ["Record in the store", bytes(found.bytes)],
        ]
      : [["Known", "nothing, not even a record"]];
    byId("state").replaceChildren(...facts.flatMap(([name, said]) => [el("dt", {}, name), el("dd", {}, said)]));
  }
}
