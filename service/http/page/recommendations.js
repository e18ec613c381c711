// The recommended items: rank, score, and what moved since the last step.

import { byId, el, unseen } from "./dom.js";
import { decimal, several } from "./format.js";
import { moves } from "./moves.js";
import { Rows } from "./rows.js";

const SOURCES = { model: "by the model", recent: "popular of late", popular: "popular in training" };

export class Recommendations {
  #items;
  #rows;
  #last = null; // the list after the last step
  #ids = [];
  #turn = 0;

  constructor(items, act) {
    this.#items = items;
    this.#rows = new Rows("list", items, act);
  }

  /** Forgets what there was: the next list is compared with nothing. */
  reset() {
    this.#last = null;
  }

  /**
   * Shows an answer of GET /recommend; returns in how many places it differs, null: from nothing.
   * Compared with is the list after the last step. step: this one is after another.
   */
  async show(answer, { step }) {
    const turn = ++this.#turn;
    this.#items.learn(answer.items);
    const ids = answer.items.map((item) => item.item_id);
    const found = this.#last && moves(this.#last, ids);
    if (step) this.#last = ids;
    await this.#items.complete(ids);
    if (turn !== this.#turn) return found && found.changed; // a newer list is there already
    const share = shares(answer);
    this.#ids = answer.source === "model" ? ids : [];
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
    byId("source").textContent = SOURCES[answer.source];
    byId("source").dataset.source = answer.source;
    const gone = (found?.gone ?? []).map((id) => this.#items.title(id));
    const more = gone.length > 4 ? ` and ${gone.length - 4} more` : "";
    byId("gone").textContent = gone.length ? `No more in the list: ${gone.slice(0, 4).join(", ")}${more}` : "";
    return found && found.changed;
  }

  /** Says of each item of the model's which interaction moved its score most. `ask()`: the same
   * list with reasons. */
  async explain(ask) {
    const turn = this.#turn;
    if (!this.#ids.length) return;
    const { items } = (await ask()).data;
    const reasons = items.filter((item) => item.because?.length).map((item) => [item.item_id, item.because[0]]);
    await this.#items.complete(reasons.map(([, reason]) => reason.item_id));
    if (turn !== this.#turn) return; // another list is there already
    for (const [id, { item_id: cause, contribution }] of reasons) {
      const said = contribution < 0 ? "in spite of" : "because of";
      this.#rows.explain(id, `${said} ${this.#items.title(cause)} (${signed(contribution)})`);
    }
  }

  unexplain() {
    for (const id of this.#ids) this.#rows.explain(id, "");
  }
}

const signed = (value) => `${value < 0 ? "−" : "+"}${decimal(Math.abs(value))}`;

function score(answer, place) {
  return decimal(answer.items[place].score, answer.source === "model" ? 2 : 0);
}

/** How much each item has of what the first one has: likelihood, or a count. */
function shares({ items, source }) {
  const best = items[0]?.score;
  return items.map(({ score }) => (source === "model" ? Math.exp(score - best) : score / (best || 1)));
}

function bar(share) {
  const filled = el("span", { class: "filled" });
  filled.style.width = `${100 * Math.max(0.01, Math.min(1, share))}%`;
  return el("span", { class: "share", "aria-hidden": "true" }, filled);
}

function movement(by) {
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
