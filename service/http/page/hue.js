// The colour of a category: the same one everywhere, and after a reload.

/** Colours an element by a name (the style says how light and how dark); none: no colour. */
export function colour(node, name) {
  if (!name) return;
  const hash = mixed(name);
  node.classList.add("coloured");
  node.classList.toggle("deep", Boolean(hash & 1)); // so that two of nearly one hue may differ still
  node.style.setProperty("--hue", String(Math.floor((360 * hash) / 2 ** 32)));
}

/** 32 bits: FNV-1a of the name, and the last mixing of MurmurHash3. */
function mixed(name) {
  let hash = 0x811c9dc5;
  for (const character of name) hash = Math.imul(hash ^ character.codePointAt(0), 0x01000193);
  for (const [shift, by] of [[16, 0x85ebca6b], [13, 0xc2b2ae35]]) hash = Math.imul(hash ^ (hash >>> shift), by);
  return (hash ^ (hash >>> 16)) >>> 0;
}
