// Compare: the same person, two ways of answering, side by side.

import { el, unseen } from "./dom.js";
import { decimal, several } from "./format.js";
import { Said, styled } from "./operator.js";
import { Service } from "./service.js";

const K = 10;
const WEEK_MS = 7 * 86_400_000;
const WAYS = [
  ["As it is served", () => []],
  ["Without what others do now (live off)", () => [["live", false]]],
  ["With items taken before", () => [["exclude_seen", false]]],
  ["Asked a week from now", () => [["at", Date.now() + WEEK_MS]]],
];

export async function view({ key, items, user }) {
  await styled();
  return new Compare(key, items, user);
}

class Compare {
  #said = new Said();
  #user;
  #input = el("input", { id: "compare-user", maxlength: "256", required: true, autocomplete: "off", spellcheck: "false", dir: "auto" });
  #ways = [0, 1].map((place) => el("select", { "aria-label": place ? "On the right" : "On the left", onchange: () => this.#ask() },
    ...WAYS.map(([name], at) => el("option", { selected: at === place }, name))));
  #sides = [el("ol", { class: "versus" }), el("ol", { class: "versus" })];
  #models = [el("p", { class: "hint" }), el("p", { class: "hint" })];
  #service;
  #items;

  constructor(key, items, user) {
    this.#service = new Service(key, (said, about) => this.#said.say(`${said}. ${about}`));
    this.#items = items;
    this.#user = user;
  }

  show(panel) {
    if (!panel.children.length) {
      const side = (place) => el("section", { class: "panel", "aria-label": place ? "Right" : "Left" }, this.#ways[place], this.#models[place], this.#sides[place]);
      panel.append(
        el("form", { class: "row-of", onsubmit: (event) => { event.preventDefault(); this.#ask(); } },
          el("label", { for: "compare-user" }, "User"), this.#input, el("button", { class: "primary" }, "Compare")),
        this.#said.node,
        el("div", { class: "two" }, side(0), side(1)),
        el("p", { class: "hint" }, "A model on trial answers its own users only: to see it, compare a user whom it answers."));
    }
    this.#input.value ||= this.#user.id;
    return this.#ask();
  }

  hide() {}

  #ask() {
    const id = this.#input.value.trim();
    if (!id) return this.#said.say("Write an id first.");
    return this.#said.during("Asking both…", async () => {
      const asked = this.#ways.map((select) => WAYS[select.selectedIndex][1]());
      const answers = await Promise.all(asked.map((more) => this.#service.get("recommend", [["user_id", id], ["k", K], ["explore", false], ...more])));
      const lists = answers.map(({ data }) => data.items);
      lists.forEach((list) => this.#items.learn(list));
      await this.#items.complete(lists.flat().map((one) => one.item_id));
      lists.forEach((list, place) => {
        const other = lists[1 - place].map((one) => one.item_id);
        this.#sides[place].replaceChildren(...list.map((one, rank) => this.#row(one, rank, other)));
        const { source, edition } = answers[place].data;
        this.#models[place].textContent = source === "model" ? `by model ${edition}` : `popular items, beside model ${edition}`;
      });
      this.#said.say(summary(...lists.map((list) => list.map((one) => one.item_id))));
    });
  }

  #row({ item_id: id, score }, rank, other) {
    const there = other.indexOf(id);
    const by = there - rank;
    const [kind, mark] = there < 0 ? ["only", "only here"] : by ? ["moved", `${by > 0 ? "↑" : "↓"} ${Math.abs(by)}`] : ["same", "="];
    const said = there < 0 ? null : unseen(by ? `, ${several(Math.abs(by), "place")} ${by > 0 ? "higher" : "lower"} than beside` : ", the same place");
    return el("li", { class: kind },
      el("span", { class: "rank" }, String(rank + 1)),
      el("span", { class: "title", dir: "auto" }, this.#items.title(id)),
      el("span", { class: "score" }, decimal(score)),
      el("span", { class: "mark" }, el("span", { "aria-hidden": there < 0 ? null : "true" }, mark), said));
  }
}

function summary(left, right) {
  const both = left.filter((id) => right.includes(id)).length;
  const same = left.filter((id, place) => right[place] === id).length;
  if (same === left.length && left.length === right.length) return "Both lists are the same.";
  return `${both} of ${left.length} items are in both lists, ${same} of them in the same place.`;
}
