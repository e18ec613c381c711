// Prometheus' text format, and what two readings of it say.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

/** {name: [{labels, value}]} of an exposition. */
export function parse(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const parts = line.startsWith("#") ? null : LINE.exec(line);
    if (!parts) continue;
    const labels = {};
    for (const [, name, value] of (parts[2] ?? "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\./g, (two) => ESCAPES[two] ?? two);
    }
    const value = { "+Inf": Infinity, "-Inf": -Infinity }[parts[3]] ?? Number(parts[3]);
    (found[parts[1]] ??= []).push({ labels, value });
  }
  return found;
}

/** The sum of the samples whose labels `fits` takes. */
export function sum(reading, name, fits = () => true) {
  return (reading[name] ?? []).filter(({ labels }) => fits(labels)).reduce((all, { value }) => all + value, 0);
}

/** How much it grew; a counter that is lower than before began anew. */
export function growth(before, after) {
  return after >= before ? after - before : after;
}

/** Upper bounds in order with how many observations up to each were made between two readings. */
export function buckets(before, after, name, fits) {
  const bounds = new Map();
  for (const { labels } of after[`${name}_bucket`] ?? []) {
    if (fits(labels)) bounds.set(labels.le, labels.le === "+Inf" ? Infinity : Number(labels.le));
  }
  const up = ({ le }, wanted, labels) => le === wanted && fits(labels);
  return [...bounds]
    .sort(([, a], [, b]) => a - b)
    .map(([le, bound]) => {
      const one = (labels) => up(labels, le, labels);
      return [bound, growth(sum(before, `${name}_bucket`, one), sum(after, `${name}_bucket`, one))];
    });
}

/** The quantile as Prometheus' histogram_quantile estimates it; null: no observations. */
export function quantile(share, cumulative) {
  const all = cumulative.at(-1)?.[1] ?? 0;
  if (!all) return null;
  const rank = share * all;
  const place = cumulative.findIndex(([, up]) => up >= rank);
  const [bound, up] = cumulative[place];
  const [low, below] = place ? cumulative[place - 1] : [0, 0];
  if (bound === Infinity) return low;
  return low + ((bound - low) * (rank - below)) / (up - below);
}
