// Who there is to be: a few people of the store, and somebody new.

import { button, byId, el } from "./dom.js";
import { ago } from "./format.js";
import { colour } from "./hue.js";
import { interactions, listed } from "./items.js";

export class People {
  #service;
  #act;
  #buttons = [];

  /** `act`: {look(person), beNew()}. */
  constructor(service, act) {
    this.#service = service;
    this.#act = act;
    this.#show([], "Looking for people in the store…");
  }

  /** Asks who there is. */
  async start() {
    try {
      const { data } = await this.#service.get("page-data/people");
      this.#show(data.people, data.people.length ? null : "Nobody in the store has a history yet: be the first.");
    } catch {
      const again = button("Look again", () => this.start());
      this.#show([], "People of the store could not be read.", again);
    }
  }

  /** Marks whose list it is: a person, or null: somebody new or named. */
  mark(person) {
    for (const [of, button] of this.#buttons) button.setAttribute("aria-pressed", String(of === person));
  }

  #show(people, said, again = null) {
    const cards = people.map((person) => {
      const last = ago(new Date(person.events.at(-1).timestamp));
      const face = el("span", { class: "face", "aria-hidden": "true" }, ...person.likes.map(patch));
      const about = `${interactions(person.events.length)}, the last ${last}`;
      const likes = `Likes ${listed(person.likes)}`;
      return [person, card(face, likes, about, () => this.#act.look(person))];
    });
    const plus = el("span", { class: "face new", "aria-hidden": "true" }, "+");
    const other = card(plus, "Be somebody new", "no history at all", () => this.#act.beNew());
    this.#buttons = cards;
    const note = said && el("p", { class: "hint", dir: "auto" }, said, " ", again ?? "");
    byId("people").replaceChildren(...cards.map(([, button]) => button), other, ...(note ? [note] : []));
  }
}

function card(face, name, about, act) {
  const texts = el("span", { class: "said-of" }, el("span", { class: "title", dir: "auto", title: name }, name), el("span", { class: "categories" }, about));
  return el("button", { type: "button", class: "person", "aria-pressed": "false", onclick: act }, face, texts);
}

function patch(name) {
  const one = el("span", {}, [...name.trim()][0] ?? "");
  colour(one, name);
  return one;
}
