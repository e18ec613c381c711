// The line in large type that says what happened, and what is to be done again.

import { byId } from "./dom.js";

const SLOW_MS = 1500;

export class Statement {
  #undone = new Set();
  #slow = 0;

  constructor() {
    byId("again").addEventListener("click", () => {
      const all = [...this.#undone];
      this.say("Trying again…");
      for (const one of all) one();
    });
  }

  /** `said` in large type; `about`: the sentence below it. What failed is taken to be done. */
  say(said, about = "") {
    this.#show(said, about, false);
    byId("again").hidden = true;
    this.#undone.clear();
  }

  /** A request has to wait; what failed before is still to be done. */
  wait(said, about) {
    this.#show(said, about, true);
  }

  /** Says what went wrong; `again`: what the button does, beside what else failed since, but for
   * what would be refused again. */
  fail(error, again) {
    if (!error.final) this.#undone.add(again);
    this.#show(error.message, error.hint ?? "Try again when you like.", true);
    byId("again").hidden = !this.#undone.size;
  }

  /** Says so if `step` takes long. */
  async timed(step) {
    clearTimeout(this.#slow);
    this.#slow = setTimeout(() => this.#show("Still waiting for an answer…", "Nothing is lost.", false), SLOW_MS);
    try {
      await step();
    } finally {
      clearTimeout(this.#slow);
    }
  }

  #show(said, about, wrong) {
    clearTimeout(this.#slow);
    byId("said").textContent = said;
    byId("about").textContent = about;
    byId("statement").classList.toggle("wrong", wrong);
  }
}
