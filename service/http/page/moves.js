// What is different between two lists of items.

/**
 * before, after: ids, best first. {changed, moved, gone}: in how many places another item stands;
 * for each id of `after` by how many places it went up (below 0: down; null: it is new); the ids
 * that are no more.
 */
export function moves(before, after) {
  const places = new Map(before.map((id, place) => [id, place]));
  const there = new Set(after);
  const length = Math.max(before.length, after.length);
  return {
    changed: Array.from({ length }, (_, place) => before[place] !== after[place]).filter(Boolean).length,
    moved: new Map(after.map((id, place) => [id, places.has(id) ? places.get(id) - place : null])),
    gone: before.filter((id) => !there.has(id)),
  };
}
