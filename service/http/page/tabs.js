// Tabs by the pattern of the ARIA authoring practices: arrows move, one is in the tab order.

import { byId, el } from "./dom.js";

const NEXT = { ArrowRight: (place) => place + 1, ArrowLeft: (place) => place - 1, Home: () => 0, End: () => -1 };

/**
 * Makes the tabs of a page, the first one chosen.
 *
 * views: {name, title, open()} each. `open` resolves to a view, which may have show(panel) and hide(),
 * when its tab is first chosen: a module is loaded when somebody looks at it. The panel is #view-NAME of the
 * page, or made where there is none.
 */
export function tabs(views) {
  const list = byId("tabs");
  const all = views.map((view) => new Tab(view));
  const choose = (chosen) => {
    for (const tab of all) tab.select(tab === chosen);
    chosen.button.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  for (const [place, { button }] of all.entries()) {
    button.addEventListener("click", () => choose(all[place]));
    button.addEventListener("keydown", (event) => {
      if (!(event.key in NEXT)) return;
      event.preventDefault();
      const next = all.at(NEXT[event.key](place) % all.length);
      next.button.focus();
      choose(next);
    });
  }
  list.replaceChildren(...all.map(({ button }) => button));
  choose(all[0]);
}

class Tab {
  #open;
  #panel;
  #view = null;
  #chosen = false;

  constructor({ name, title, open }) {
    const [tab, panel] = [`tab-${name}`, `view-${name}`];
    this.#open = open;
    this.button = el("button", { type: "button", role: "tab", id: tab, "aria-controls": panel }, title);
    this.#panel = byId(panel) ?? document.querySelector("main").appendChild(el("div", { id: panel }));
    this.#panel.setAttribute("role", "tabpanel");
    this.#panel.setAttribute("aria-labelledby", tab);
  }

  async select(chosen) {
    const was = this.#chosen;
    this.#chosen = chosen;
    this.button.setAttribute("aria-selected", String(chosen));
    this.button.tabIndex = chosen ? 0 : -1;
    this.#panel.hidden = !chosen;
    if (chosen === was) return;
    if (!chosen) return this.#view?.then((view) => view.hide?.());
    this.#view ??= this.#open();
    try {
      const view = await this.#view;
      if (this.#chosen) view.show?.(this.#panel);
    } catch (error) {
      this.#view = null; // choosing it again loads it again
      this.#panel.replaceChildren(el("p", { class: "notice" }, "This view could not be loaded. Choose it once more to try again."));
      throw error;
    }
  }
}
