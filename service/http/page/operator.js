// What the operator's views share: their style, a line that says how it went, and words for faults.

import { button, el, terms } from "./dom.js";
import { Service } from "./service.js";

let style = null;

/** Resolves once the style of these views is there. */
export function styled() {
  style ??= new Promise((done) => {
    const link = el("link", { rel: "stylesheet", href: "page/operator.css", onload: done, onerror: done });
    document.head.append(link);
  });
  return style;
}

/** What went wrong, for somebody who does not know the API. */
export function words(error) {
  const status = error.status ?? 0;
  if (!status) return "The service does not answer.";
  if (status === 401) return "This needs a key that the service knows.";
  if (status === 403) return "The service was started without admin keys, so nobody may see this.";
  if (status === 503) return "The service can't reach its store just now, or has too much to do.";
  return error.message.endsWith(".") ? error.message : `${error.message}.`;
}

/** A line that says how it went, with a button that tries again what did not. */
export class Said {
  #line = el("p", { class: "told", role: "status" });
  #button = button("Try again", () => this.#again?.());
  #again = null;
  node = el("div", { class: "bar" }, this.#line, this.#button);

  constructor(text = "") {
    this.say(text);
  }

  say(text) {
    this.#put(text, null);
  }

  /** `again`: what the button does. */
  fail(error, again) {
    this.#put(words(error), again);
  }

  /** The API with this key; here it is said when a request has to wait. */
  service(key) {
    return new Service(key, (said, about) => this.say(`${said}. ${about}`));
  }

  /** Runs `work` as long as it takes, and says what went wrong. */
  async during(text, work) {
    this.say(text);
    try {
      await work();
    } catch (error) {
      this.fail(error, () => this.during(text, work));
    }
  }

  #put(text, again) {
    this.#again = again;
    this.#line.textContent = text;
    this.#line.hidden = !text;
    this.#line.classList.toggle("wrong", again !== null);
    this.#button.hidden = again === null;
  }
}

/** A name and what is so, in pairs. */
export const facts = (pairs) =>
  el("dl", { class: "facts" }, ...terms(pairs));

/** Rows of what can be opened: [title, what is said of it, act] each. */
export const openers = (all) =>
  all.map(([title, note, act]) => el("li", {}, el("button", { type: "button", class: "open-one", onclick: act },
    el("span", { class: "title", dir: "auto" }, title), el("span", { class: "categories", dir: "auto" }, note))));

/** What finds something, and beside it what is found. */
export const sides = (found, ...find) => el("div", { class: "sides" }, el("section", { class: "panel", "aria-label": "Find" }, ...find), found);

/** A table that scrolls within itself; a row is its first cell, which names it, and the others. */
export function table(label, columns, rows) {
  const head = columns.map((name) => el("th", { scope: "col" }, name));
  const body = rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", {}, cell))));
  const made = el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body));
  return el("div", { class: "wide", role: "region", "aria-label": label, tabindex: "0" }, made);
}
