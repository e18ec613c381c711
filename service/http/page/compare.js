// Compare: the same person, two ways of answering, side by side.

import { button, el } from "./dom.js";
import { decimal } from "./format.js";
import { moves } from "./moves.js";
import { Said } from "./operator.js";
import { movement } from "./recommendations.js";
import { pairs } from "./service.js";

const K = 10;
const WEEK_MS = 7 * 86_400_000;
// What is asked for besides, or else of which model.
const WAYS = [
  ["As it is served", () => ({})],
  ["Without what others do now (live off)", () => ({ live: false })],
  ["With items taken before", () => ({ exclude_seen: false })],
  ["Asked a week from now", () => ({ at: Date.now() + WEEK_MS })],
];
const option = ([name], selected) => el("option", { selected }, name);

export class View {
  #said = new Said();
  #user;
  #input = el("input", { id: "compare-user", maxlength: "256", required: true, autocomplete: "off", spellcheck: "false", dir: "auto" });
  #ways = WAYS;
  #chosen = [0, 1].map((place) => el("select", { "aria-label": place ? "On the right" : "On the left", onchange: () => this.#ask() },
    ...WAYS.map((way, at) => option(way, at === place))));
  #sides = [0, 1].map(() => el("ol", { class: "versus" }));
  #models = [0, 1].map(() => el("p", { class: "hint" }));
  #service;
  #admin;
  #items;

  constructor({ key, adminKey, items, user }) {
    this.#service = this.#said.service(key);
    this.#admin = this.#said.service(adminKey);
    this.#items = items;
    this.#user = user;
  }

  show(panel) {
    if (!panel.children.length) {
      const side = (place) => el("section", { class: "panel", "aria-label": place ? "Right" : "Left" }, this.#chosen[place], this.#models[place], this.#sides[place]);
      panel.append(
        el("form", { class: "row-of", onsubmit: (event) => { event.preventDefault(); this.#ask(); } },
          el("label", { for: "compare-user" }, "User"), this.#input, el("button", { class: "primary" }, "Compare"),
          button("Other models", () => this.#others())),
        this.#said.node,
        el("div", { class: "two" }, side(0), side(1)));
    }
    this.#input.value ||= this.#user.id;
    return this.#ask();
  }

  /** Adds the models that are served: what everybody has, and those on trial. */
  #others() {
    return this.#said.during("Looking which models are served…", async () => {
      const { base, trials } = (await this.#admin.get("admin/model")).data.processes[0];
      const found = trials.length ? [base, ...trials] : [];
      const models = found.map(({ name, edition }) => [`By ${name}, ${edition}`, () => ({ edition })]);
      this.#ways = [...WAYS, ...models];
      for (const select of this.#chosen) {
        [...select.options].slice(WAYS.length).forEach((one) => one.remove());
        select.append(...models.map((way) => option(way, false)));
      }
      this.#said.say(models.length ? "Choose a model on the left or on the right." : "No other model is served: put one on trial, for the smallest share if nobody is to have it.");
    });
  }

  #ask() {
    const id = this.#input.value.trim();
    if (!id) return this.#said.say("Write an id first.");
    return this.#said.during("Asking both…", async () => {
      const asked = this.#chosen.map((select) => ({ user_id: id, k: K, explore: false, ...this.#ways[select.selectedIndex][1]() }));
      const answers = await Promise.all(asked.map((one) => (one.edition ? this.#admin.post("admin/recommend", one) : this.#service.get("recommend", pairs(one)))));
      const lists = answers.map(({ data }) => data.items);
      lists.forEach((list) => this.#items.learn(list));
      const ids = lists.map((list) => list.map((one) => one.item_id));
      await this.#items.complete(ids.flat());
      const beside = [moves(ids[1], ids[0]), moves(ids[0], ids[1])];
      lists.forEach((list, place) => {
        this.#sides[place].replaceChildren(...list.map((one, rank) => this.#row(one, rank, beside[place].moved.get(one.item_id))));
        const { source, edition } = answers[place].data;
        this.#models[place].textContent = source === "model" ? `by model ${edition}` : `popular items, beside model ${edition}`;
      });
      this.#said.say(summary(beside[0]));
    });
  }

  #row({ item_id: id, score }, rank, by) {
    return el("li", { class: by === null ? "only" : null },
      el("span", { class: "rank" }, String(rank + 1)),
      el("span", { class: "title", dir: "auto" }, this.#items.title(id)),
      el("span", { class: "score" }, decimal(score)),
      el("span", { class: "mark" }, by === null ? "only here" : movement(by)));
  }
}

/** What two lists have in common; `changed`, `moved`: as `moves` has them. */
function summary({ changed, moved }) {
  const all = [...moved.values()];
  if (!changed) return "Both lists are the same.";
  const [both, same] = [all.filter((by) => by !== null), all.filter((by) => by === 0)];
  return `${both.length} of ${all.length} items are in both lists, ${same.length} of them in the same place.`;
}
