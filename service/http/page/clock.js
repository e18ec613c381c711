// The moment that is asked for: now, or so long after the last interaction.

import { byId, el } from "./dom.js";
import { span } from "./format.js";

const STEPS = 1000;
const YEAR_S = 31_557_600;
const TICKS = [["1 s", 1], ["1 min", 60], ["1 h", 3600], ["1 day", 86_400], ["1 week", 604_800], ["1 year", YEAR_S]];

const seconds = (position) => (position ? Math.round(Math.exp((Math.log(YEAR_S) * position) / STEPS)) : 0);
const position = (gap) => (gap < 1 ? 0 : Math.min(STEPS, (STEPS * Math.log(gap)) / Math.log(YEAR_S)));

export class Clock extends EventTarget {
  #last = null; // of the last interaction, ms
  #live = true;
  #slider = byId("gap");

  constructor() {
    super();
    this.#slider.addEventListener("input", () => this.#set(false));
    byId("live").addEventListener("click", () => this.#set(true));
    for (const [text, gap] of TICKS) {
      const tick = el("span", {}, text);
      tick.style.left = `${position(gap) / (STEPS / 100)}%`;
      byId("ticks").append(tick);
    }
  }

  /** `at` of GET /recommend; null: now. */
  get at() {
    return this.#live ? null : this.#last + 1000 * seconds(Number(this.#slider.value));
  }

  /** Back to now, after an interaction at `last` (ms; null: there is none). */
  start(last) {
    this.#last = last;
    this.#live = true;
    this.show();
  }

  show() {
    this.#slider.disabled = byId("live").disabled = this.#last === null;
    byId("live").setAttribute("aria-pressed", String(this.#live));
    if (this.#live && this.#last !== null) {
      this.#slider.value = String(Math.round(position((Date.now() - this.#last) / 1000)));
    }
    const gap = seconds(Number(this.#slider.value));
    const said = this.#live ? "now" : gap ? `${span(gap)} after the last interaction` : "the moment of the last interaction";
    byId("gap-said").textContent = said;
    this.#slider.setAttribute("aria-valuetext", said);
  }

  #set(live) {
    this.#live = live;
    this.show();
    this.dispatchEvent(new Event("change"));
  }
}
