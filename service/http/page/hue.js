// The colour of a category: the same one everywhere, and after a reload.

/** Colours an element by a name (its classes say how light and how dark); none: no colour. */
export function colour(node, name) {
  node.classList.toggle("coloured", Boolean(name));
  if (name) node.style.setProperty("--hue", hue(name));
}

/** 0 to 360, by FNV-1a of the name and the last mixing of MurmurHash3. */
export function hue(name) {
  let hash = 0x811c9dc5;
  for (const character of name) hash = Math.imul(hash ^ character.codePointAt(0), 0x01000193) >>> 0;
  for (const [shift, by] of [[16, 0x85ebca6b], [13, 0xc2b2ae35]]) hash = Math.imul(hash ^ (hash >>> shift), by) >>> 0;
  return String(Math.floor((360 * (hash ^ (hash >>> 16))) / 2 ** 32 + 360) % 360);
}
