// A line chart of the last minutes, as SVG.

import { el } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [560, 200, 60, 8, 8, 20];

const TICKS_S = [15, 30, 60];

const svg = (tag, given, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(given)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

/** The least of 1, 2, 2.5 and 5 times a power of ten with which four steps reach `most`. */
function step(most) {
  const least = most / 4;
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 2.5, 5, 10].find((by) => by * power >= least * 0.999) * power;
}

export class Chart {
  #place;
  #title;
  #unit;
  #most;

  /** `unit(value)` says a value; `most`: the top of the axis, where it is fixed. */
  constructor(place, title, unit, most = null) {
    this.#place = place;
    this.#title = title;
    this.#unit = unit;
    this.#most = most;
  }

  /** series: {name, values} each, values as long as `times` (ms), null where there is none; `length`: ms. */
  draw(times, series, length) {
    const end = times.at(-1);
    const top = this.#most ?? (Math.max(...series.flatMap(({ values }) => values), 0) || 1);
    const tick = step(top);
    const high = this.#most ?? tick * Math.max(1, Math.ceil(top / tick - 1e-9));
    const x = (time) => WIDTH - RIGHT - ((end - time) / length) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value / high) * (HEIGHT - TOP - BOTTOM);
    const now = series.map(({ name, values }) => `${name} ${this.#said(values.at(-1))}`).join(", ");
    const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${this.#title}: ${now || "nothing yet"}` });
    for (let value = 0; value <= high * 1.001; value += tick) {
      drawing.append(
        svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
        svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, this.#unit(value)),
      );
    }
    const every = TICKS_S.find((one) => length / 1000 / one <= 5) * 1000;
    for (let before = 0; before < length * 0.95; before += every) {
      const given = { x: x(end - before), y: HEIGHT - 5, "text-anchor": before ? "middle" : "end" };
      drawing.append(svg("text", given, before ? earlier(before / 1000) : "now"));
    }
    series.forEach(({ values }, place) => {
      drawing.append(svg("path", { class: `line c${place}`, d: path(times.map(x), values, y) }));
    });
    const legend = series.map(({ name, values }, place) =>
      el("li", {}, el("span", { class: `dot c${place}`, "aria-hidden": "true" }), `${name} `, el("b", {}, this.#said(values.at(-1)))),
    );
    const below = legend.length ? el("ul", { class: "legend" }, ...legend) : el("p", { class: "legend" }, "nothing in this time");
    this.#place.replaceChildren(el("figcaption", {}, this.#title), drawing, below);
  }

  #said(value) {
    return value === null || value === undefined ? "–" : this.#unit(value);
  }
}

const earlier = (seconds) => (seconds % 60 ? `−${seconds} s` : `−${seconds / 60} min`);

/** A line through the values, broken where there is none; a lone one is a dot. */
function path(xs, values, y) {
  let drawn = "";
  values.forEach((value, place) => {
    if (value === null) return;
    const at = `${xs[place].toFixed(1)} ${y(value).toFixed(1)}`;
    const goesOn = place > 0 && values[place - 1] !== null;
    drawn += goesOn ? `L${at}` : `M${at}h0`;
  });
  return drawn;
}
