// The recommended items: rank, score, reasons, and what moved since the last step.

import { byId, el, unseen } from "./dom.js";
import { decimal, several } from "./format.js";
import { listed } from "./items.js";
import { moves } from "./moves.js";
import { Rows } from "./rows.js";

const SOURCES = { model: "by the model", live: "by what happens live", recent: "popular of late", popular: "popular in training" };
const PATHS = { promoted: "It is promoted.", explored: "Little is known of it yet: it is shown to find out.", cold: "It is new: recommended by what it is like." };
const SAID = 2; // reasons for an item, and against it
const ROOM = 34; // characters that a card has for them

export class Recommendations {
  #items;
  #rows;
  #last = null; // the list after the last step
  #turn = 0;
  #source = null;

  constructor(items, act) {
    this.#items = items;
    this.#rows = new Rows("list", items, act);
  }

  /**
   * Shows an answer of GET /recommend; returns in how many places it differs, null: from nothing.
   * Compared with is the list after the last step. step: this one is after another.
   */
  async show(answer, { step }) {
    const turn = ++this.#turn;
    this.#items.learn(answer.items.map(({ attributes, ...item }) => item));
    const ids = answer.items.map((item) => item.item_id);
    const found = this.#last && moves(this.#last, ids);
    if (step) this.#last = ids;
    await this.#items.complete(ids);
    if (turn !== this.#turn) return found && found.changed; // a newer list is there already
    const share = shares(answer);
    this.#rows.show(ids, (id, place) => ({
      before: el("span", { class: "rank" }, String(place + 1)),
      note: bar(share[place]),
      after: el(
        "span",
        { class: "numbers" },
        found ? movement(found.moved.get(id)) : null,
        el("span", { class: "score", title: "score" }, unseen("score "), score(answer, place)),
      ),
    }));
    performance.mark("list");
    this.#source = answer.source;
    byId("source").textContent = SOURCES[answer.source];
    byId("source").dataset.source = answer.source;
    this.markStale(answer.stale ? "may lack the newest" : "");
    const gone = (found?.gone ?? []).map((id) => this.#items.title(id));
    const more = gone.length > 4 ? ` and ${gone.length - 4} more` : "";
    byId("gone").textContent = gone.length ? `No more in the list: ${gone.slice(0, 4).join(", ")}${more}` : "";
    return found && found.changed;
  }

  /** Says that the list is one from before; "": it is not. */
  markStale(said) {
    byId("stale").textContent = said;
    byId("list").classList.toggle("stale", Boolean(said));
  }

  /** Whether the service can say why these items. */
  get hasReasons() {
    return ["model", "live"].includes(this.#source);
  }

  /** Says of each item of the model's why it is there. `ask()`: the same list with reasons; `who`
   * took what they are. */
  async explain(ask, who) {
    const turn = this.#turn;
    const { items } = (await ask()).data;
    const causes = items.flatMap((item) => [...(item.because ?? []), item.live ?? {}]).map((one) => one.item_id);
    await this.#items.complete(causes.filter(Boolean));
    if (turn !== this.#turn) return; // another list is there already
    for (const item of items) this.#rows.explain(item.item_id, ...this.#reasons(item, who));
  }

  /** For reasons, or none. */
  makeRoom(wanted) {
    byId("list").classList.toggle("no-why", !wanted);
  }

  /** Sentences: what speaks for it, and behind a tap what speaks against it. */
  #reasons({ path, because = [], live }, who) {
    const taken = (of) => {
      const titles = [...new Set(of.map(({ item_id: id }) => this.#items.title(id)))].slice(0, SAID);
      return listed(titles).length > ROOM ? titles.slice(0, 1) : titles;
    };
    const said = PATHS[path] ? [PATHS[path]] : [];
    const lifted = taken(because.filter(({ contribution }) => contribution > 0));
    if (lifted.length) said.push(`Because ${who} took ${listed(lifted)}.`);
    if (live?.share > 0) said.push(live.item_id ? `Live: others go from ${this.#items.title(live.item_id)} to this.` : "Live: others take it.");
    const against = taken(because.filter(({ contribution }) => contribution < 0));
    if (!said.length && !against.length) return [];
    if (!said.length) said.push("No single interaction speaks for it.");
    const held = against.length && el("details", {}, el("summary", {}, "What speaks against it?"), el("p", { dir: "auto" }, `It would stand higher without ${listed(against)}.`));
    return [...said.map((text) => el("p", { dir: "auto", title: text }, text)), ...(held ? [held] : [])];
  }
}

function score(answer, place) {
  return decimal(answer.items[place].score, answer.source === "model" ? 2 : 0);
}

/** How much each item has of what the first one has: likelihood, or a count. */
function shares({ items, source }) {
  const best = items[0]?.score;
  return items.map(({ score }) => (source === "model" ? Math.exp(score - best) : score / (best || 1)));
}

export function bar(share) {
  const filled = el("span", { class: "filled" });
  filled.style.width = `${100 * Math.max(0.01, Math.min(1, share))}%`;
  return el("span", { class: "share", "aria-hidden": "true" }, filled);
}

export function movement(by) {
  if (by === null) return el("span", { class: "move new" }, "new");
  if (by === 0) return el("span", { class: "move" }, el("span", { "aria-hidden": "true" }, "–"), unseen("same place"));
  const [name, arrow] = by > 0 ? ["up", "▲"] : ["down", "▼"];
  const places = Math.abs(by);
  return el(
    "span",
    { class: `move ${name}` },
    el("span", { "aria-hidden": "true" }, `${arrow} ${places}`),
    unseen(`${name} ${several(places, "place")}`),
  );
}
