// Tabs by the pattern of the ARIA authoring practices: arrows move, one is in the tab order.

/** Makes the tabs of a tablist work; `shown(id of the panel)` when one is chosen. */
export function tabs(list, shown) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const choose = (tab) => {
    for (const one of all) {
      const chosen = one === tab;
      one.setAttribute("aria-selected", String(chosen));
      one.tabIndex = chosen ? 0 : -1;
      document.getElementById(one.getAttribute("aria-controls")).hidden = !chosen;
    }
    shown(tab.getAttribute("aria-controls"));
  };
  const to = { ArrowRight: (place) => place + 1, ArrowLeft: (place) => place - 1, Home: () => 0, End: () => -1 };
  for (const [place, tab] of all.entries()) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      if (!(event.key in to)) return;
      event.preventDefault();
      const next = all.at(to[event.key](place) % all.length);
      next.focus();
      choose(next);
    });
  }
}
