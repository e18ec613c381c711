// Health: whether the service is well, in the figures of all its workers.

import { Chart } from "./chart.js";
import { checks, counted, DURATION } from "./checks.js";
import { el, unseen } from "./dom.js";
import { count, ms, percent, several, short } from "./format.js";
import { sum } from "./metrics.js";
import { Said, table, words } from "./operator.js";
import { quality } from "./quality.js";
import { Between, Readings } from "./readings.js";

const MINUTE_MS = 60_000;
const POINT_MS = 10_000; // what one point of a line is about
const STAGES = "tim4rec_stage_duration_seconds";
const SPANS = [["the last minute", MINUTE_MS], ["the last 5 minutes", 5 * MINUTE_MS], ["all time since the start", Infinity]];
const LEVELS = { ok: ["✓", "well"], watch: ["!", "look at this"], wrong: ["✕", "wrong"] };
const MOST_LINES = 6;

const named = ({ method, route }) => `${method} ${route}`;
const time = (value) => (value === null ? "–" : ms(value));

export class View {
  #readings;
  #said = new Said();
  #verdict = el("p", { class: "verdict" }, "Reading…");
  #facts = el("ul", { class: "checks" });
  #quality = el("div");
  #routes = el("div");
  #span = el("select", { id: "health-span", onchange: () => this.#draw() }, ...SPANS.map(([name]) => el("option", {}, name)));
  #figures = Array.from({ length: 4 }, () => el("figure", { class: "panel" }));
  #charts = [
    new Chart(this.#figures[0], "Requests a second", short),
    new Chart(this.#figures[1], "How long answers take", ms),
    new Chart(this.#figures[2], "Users found in memory", percent, 1),
    new Chart(this.#figures[3], "Requests waiting", short),
  ];

  constructor({ key }) {
    this.#readings = new Readings(key, (error) => this.#told(error));
  }

  show(panel) {
    if (!panel.children.length) panel.append(...this.#parts());
    this.#readings.start();
  }

  hide() {
    this.#readings.stop();
  }

  #parts() {
    const section = (id, title, ...children) =>
      el("section", { class: "panel", "aria-labelledby": id }, el("h2", { id }, title), ...children);
    return [
      this.#said.node,
      el("div", { class: "stack" },
        el("div", { class: "panel" }, el("div", { role: "status" }, this.#verdict), this.#facts),
        section("quality-title", "Are the lists good?", this.#quality),
        section("routes-title", "By kind of request", el("p", {}, el("label", { for: "health-span" }, "Over "), this.#span), this.#routes),
        el("div", { class: "pairs" }, ...this.#figures)),
    ];
  }

  #told(error) {
    if (!error) {
      this.#said.say("");
      return this.#draw();
    }
    const last = this.#readings.all.at(-1);
    const old = last ? ` What is below is ${several(Math.round((Date.now() - last.time) / 1000), "second")} old.` : "";
    this.#said.fail(Object.assign(new Error(), { status: 422, message: words(error) + old }), () => this.#readings.start());
    this.#judge([], error);
  }

  #judge(found, error) {
    const of = (level) => found.filter((one) => one.level === level);
    const [wrong, watch] = [of("wrong"), of("watch")];
    const level = error || wrong.length ? "wrong" : watch.length ? "watch" : "ok";
    const names = [...wrong, ...watch].map(({ name }) => name.toLowerCase()).join(", ");
    const text = error ? "It can't be told whether the service is well." : names ? `Look at: ${names}.` : "The service is well.";
    if (this.#verdict.textContent === LEVELS[level][0] + text) return; // said once
    this.#verdict.dataset.level = level;
    this.#verdict.replaceChildren(el("span", { class: "sign", "aria-hidden": "true" }, LEVELS[level][0]), text);
  }

  #draw() {
    const all = this.#readings.all;
    if (!all.length) return;
    const recent = all.length > 1 ? this.#readings.over(MINUTE_MS) : this.#readings.over(Infinity);
    const found = checks(recent);
    this.#judge(found, null);
    this.#facts.replaceChildren(...found.map(card));
    this.#quality.replaceChildren(...quality(recent.to));
    this.#table();
    if (all.length > 1) this.#lines(all);
  }

  #table() {
    const [, length] = SPANS[this.#span.selectedIndex];
    const between = this.#readings.over(this.#readings.all.length > 1 ? length : Infinity);
    const samples = between.to[`${DURATION}_count`] ?? [];
    const names = [...new Set(samples.filter(({ labels }) => counted(labels)).map(({ labels }) => named(labels)))];
    const rows = names.map((name) => routeRow(between, name)).sort((one, other) => other.all - one.all);
    const asked = rows.filter(({ all }) => all > 0).map(({ cells }) => cells);
    if (!asked.length) {
      this.#routes.replaceChildren(el("p", { class: "hint" }, "Nobody asked for anything in this time."));
      return;
    }
    const columns = ["Request", "Number", "Errors", "p50", "p90", "p99"];
    const apart = explanations(between);
    const note = "Explanations are a part of the times of the requests that asked for them.";
    this.#routes.replaceChildren(
      table("Requests", columns, [...asked, ...apart]),
      ...(apart.length ? [el("p", { class: "hint" }, note)] : []),
    );
  }

  #lines(all) {
    const times = all.slice(1).map((one) => one.time);
    const length = Math.min(5 * MINUTE_MS, Math.max(MINUTE_MS, all.at(-1).time - times[0]));
    const each = (of) => all.slice(1).map((one, place) => of(new Between(all.findLast((other, at) => at <= place && one.time - other.time >= POINT_MS) ?? all[0], one)));
    const names = [...new Set(all.at(-1).metrics[`${DURATION}_count`]?.filter(({ labels }) => counted(labels)).map(({ labels }) => named(labels)))];
    const total = ({ values }) => values.reduce((one, other) => one + other, 0);
    const lines = names
      .map((name) => ({ name, values: each((between) => between.rate(`${DURATION}_count`, (labels) => named(labels) === name)) }))
      .filter((line) => total(line) > 0)
      .sort((one, other) => total(other) - total(one));
    const quantiles = each((between) => between.quantiles(DURATION, counted));
    const hits = (between) => {
      const found = between.growth("tim4rec_pool_lookups_total");
      return found ? between.growth("tim4rec_pool_lookups_total", ({ result }) => result === "hit") / found : null;
    };
    const series = [
      lines.slice(0, MOST_LINES),
      ["p50", "p90", "p99"].map((name, place) => ({ name, values: quantiles.map((found) => found[place]) })),
      [{ name: "found", values: each(hits) }],
      [{ name: "waiting", values: all.slice(1).map((one) => sum(one.metrics, "tim4rec_queue_requests")) }],
    ];
    this.#charts.forEach((chart, place) => chart.draw(times, series[place], length));
  }
}

function card({ name, level, value, note }) {
  const [sign, word] = LEVELS[level];
  return el(
    "li",
    { "data-level": level },
    el("span", { class: "name" }, name, el("span", { class: "sign", "aria-hidden": "true" }, sign), unseen(`: ${word}`)),
    el("strong", {}, value),
    el("span", { class: "note" }, note),
  );
}

function routeRow(between, name) {
  const fits = (labels) => named(labels) === name;
  const all = between.growth(`${DURATION}_count`, fits);
  const wrong = between.growth(`${DURATION}_count`, (labels) => fits(labels) && labels.status.startsWith("5"));
  return { all, cells: [name, count(all), wrong ? `${count(wrong)} (${percent(wrong / all)})` : "–", ...between.quantiles(DURATION, fits).map(time)] };
}

/** Rows of the explanations, which are stages of other requests. */
function explanations(between) {
  const routes = new Set((between.to[`${STAGES}_count`] ?? []).filter(({ labels }) => labels.stage === "explain").map(({ labels }) => labels.route));
  return [...routes].flatMap((route) => {
    const fits = (labels) => labels.stage === "explain" && labels.route === route;
    const all = between.growth(`${STAGES}_count`, fits);
    return all ? [[`Explanations of ${route}`, count(all), "–", ...between.quantiles(STAGES, fits).map(time)]] : [];
  });
}
