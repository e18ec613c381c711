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

export const unseen = (text) => el("span", { class: "unseen" }, text);
