// The live charts: /metrics read every two seconds while they are looked at.

import { Chart } from "./chart.js";
import { byId, el } from "./dom.js";
import { ms, short } from "./format.js";
import { buckets, growth, parse, quantile, sum } from "./metrics.js";

const EVERY_MS = 2000;
const LENGTH_MS = 300_000;
const SHORTEST_MS = 60_000;
const OVER_MS = 10_000; // what one point of the latency is about
const TABLE_MS = 30_000;
const DURATION = "tim4rec_request_duration_seconds";
const QUANTILES = [0.5, 0.9, 0.99];
const ALL = "all routes";
const MOST_LINES = 6;

// The page's own question is no traffic of the service; probes are none either.
const counts = ({ route }) => !["/metrics", "/livez", "/readyz"].includes(route);
const named = ({ method, route }) => `${method} ${route}`;
const percent = (value) => `${short(100 * value)} %`;
const milliseconds = (value) => (value < 1000 ? `${short(value)} ms` : `${short(value / 1000)} s`);

export const view = ({ key }) => new Charts(key);

class Charts {
  #readings = []; // {time, metrics}
  #timer = 0;
  #running = false;
  #charts = {
    requests: new Chart(byId("chart-requests"), "Requests a second", short),
    latency: new Chart(byId("chart-latency"), "Latency", milliseconds),
    hits: new Chart(byId("chart-hits"), "States found in the pool", percent, 1),
    queue: new Chart(byId("chart-queue"), "Requests waiting", short),
  };

  #key;

  constructor(key) {
    this.#key = key;
    byId("route").append(el("option", {}, ALL));
    byId("route").addEventListener("change", () => this.#draw());
    document.addEventListener("visibilitychange", () => this.#next(0));
  }

  show() {
    this.#running = true;
    this.#next(0);
  }

  hide() {
    this.#running = false;
    this.#next(0);
  }

  #next(wait) {
    clearTimeout(this.#timer);
    if (this.#running && !document.hidden) this.#timer = setTimeout(() => this.#read(), wait);
  }

  async #read() {
    try {
      const key = this.#key.value;
      const headers = key ? { "X-API-Key": key } : {};
      const answer = await fetch(new URL("metrics", document.baseURI), { headers, cache: "no-store", signal: AbortSignal.timeout(5000) });
      if (answer.status === 404) {
        byId("charts-said").textContent = "/metrics is on another port, which this page can't read.";
        return;
      }
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const time = Date.now();
      this.#readings.push({ time, metrics: parse(await answer.text()) });
      this.#readings = this.#readings.filter((one) => time - one.time <= LENGTH_MS + OVER_MS);
      if (this.#readings.length > 1) this.#draw();
    } catch (error) {
      byId("charts-said").textContent = `/metrics can't be read (${error.message}); trying again every 2 s.`;
    }
    this.#next(EVERY_MS);
  }

  #draw() {
    const readings = this.#readings;
    if (readings.length < 2) return;
    const newest = readings.at(-1);
    const routes = [...new Set((newest.metrics[`${DURATION}_count`] ?? []).filter((one) => counts(one.labels)).map((one) => named(one.labels)))].sort();
    this.#offer(routes);
    const chosen = byId("route").value;
    const fits = (labels) => counts(labels) && (chosen === ALL || named(labels) === chosen);
    const shown = readings.slice(1);
    const times = shown.map((one) => one.time);
    const each = (of) => shown.map((one, place) => of(readings[place], one));
    const length = Math.min(LENGTH_MS, Math.max(SHORTEST_MS, newest.time - times[0]));
    const draw = (name, series) => this.#charts[name].draw(times, series, length);

    const lines = routes.map((name) => ({ name, values: each((a, b) => perSecond(a, b, (labels) => named(labels) === name)) }));
    const busiest = lines.sort((a, b) => all(b.values) - all(a.values)).slice(0, MOST_LINES);
    draw("requests", busiest.filter(({ values }) => all(values) > 0));

    const spans = shown.map((one) => {
      const from = readings.find((earlier) => one.time - earlier.time <= OVER_MS + EVERY_MS / 2);
      return buckets(from.metrics, one.metrics, DURATION, fits);
    });
    draw("latency", QUANTILES.map((share) => ({ name: `p${100 * share}`, values: spans.map((found) => inMs(quantile(share, found))) })));

    draw("hits", [{ name: "hit ratio", values: each((a, b) => hitRatio(a.metrics, b.metrics)) }]);
    draw("queue", [{ name: "waiting", values: shown.map((one) => sum(one.metrics, "tim4rec_queue_requests")) }]);

    const from = readings.find((one) => newest.time - one.time <= TABLE_MS);
    byId("routes").replaceChildren(...lines.map(({ name }) => this.#row(name, from, newest)));
    byId("charts-said").textContent = `Read every 2 s from /metrics, over all workers; latency over the last 10 s, of ${chosen}.`;
  }

  #row(name, from, to) {
    const found = buckets(from.metrics, to.metrics, DURATION, (labels) => named(labels) === name);
    const said = QUANTILES.map((share) => quantile(share, found)).map((value) => (value === null ? "–" : ms(1000 * value)));
    const often = perSecond(from, to, (labels) => named(labels) === name);
    return el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, short(often)), ...said.map((text) => el("td", {}, text)));
  }

  #offer(routes) {
    const select = byId("route");
    const there = new Set([...select.options].map((option) => option.value));
    select.append(...routes.filter((name) => !there.has(name)).map((name) => el("option", {}, name)));
  }
}

const all = (values) => values.reduce((one, other) => one + other, 0);
const inMs = (seconds) => (seconds === null ? null : 1000 * seconds);

function perSecond(from, to, fits) {
  const name = `${DURATION}_count`;
  const seconds = (to.time - from.time) / 1000;
  return growth(sum(from.metrics, name, fits), sum(to.metrics, name, fits)) / seconds;
}

function hitRatio(before, after) {
  const grown = (result) => {
    const one = (reading) => sum(reading, "tim4rec_pool_lookups_total", (labels) => labels.result === result);
    return growth(one(before), one(after));
  };
  const [hits, misses] = [grown("hit"), grown("miss")];
  return hits + misses ? hits / (hits + misses) : null;
}
