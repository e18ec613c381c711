// Elements. What comes from outside becomes text here, never markup.

export const byId = (id) => document.getElementById(id);

/** An element with attributes (`on...`: a listener) and children; null ones are left out. */
export function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** One that does nothing else than `act`. */
export const button = (text, act, given = {}) => el("button", { type: "button", onclick: act, ...given }, text);

export const unseen = (text) => el("span", { class: "unseen" }, text);

/** What is in a list of terms: [name, what is so] each. */
export const terms = (pairs) => pairs.flatMap(([name, said]) => [el("dt", {}, name), el("dd", { dir: "auto" }, said)]);

/** Asks once more before `act`. */
export function asks({ title, said, yes }, act) {
  const dialog = el("dialog", { "aria-label": title, onclose: () => dialog.remove() },
    el("h2", {}, title),
    el("p", { dir: "auto" }, said),
    el("div", { class: "choices" },
      button("Cancel", () => dialog.close()),
      button(yes, () => { dialog.close(); act(); }, { class: "danger" })));
  document.body.append(dialog);
  dialog.showModal();
}
