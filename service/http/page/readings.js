// Readings of the service's metrics, every two seconds while somebody looks, and what they say.

import { buckets, growth, parse, quantile, sum } from "./metrics.js";

const EVERY_MS = 2000;
const KEPT_MS = 310_000;
const TIMEOUT_MS = 5000;
const QUANTILES = [0.5, 0.9, 0.99];

/** The newest readings, {time, metrics} each, the oldest first. */
export class Readings {
  #kept = [];
  #timer = 0;
  #running = false;
  #key;
  #told;

  /** `told(error)`: what to call after each attempt; null: there is a new reading. */
  constructor(key, told) {
    this.#key = key;
    this.#told = told;
    document.addEventListener("visibilitychange", () => this.#next(0));
  }

  get all() {
    return this.#kept;
  }

  start() {
    this.#running = true;
    this.#next(0);
  }

  stop() {
    this.#running = false;
    this.#next(0);
  }

  /** From the oldest reading that is no older than `ms`, to the newest; Infinity: from when the workers started. */
  over(ms) {
    const newest = this.#kept.at(-1);
    if (ms === Infinity) return new Between({ time: NaN, metrics: {} }, newest);
    return new Between(this.#kept.find(({ time }) => newest.time - time <= ms), newest);
  }

  #next(wait) {
    clearTimeout(this.#timer);
    if (this.#running && !document.hidden) this.#timer = setTimeout(() => this.#read(), wait);
  }

  async #read() {
    try {
      const metrics = parse(await this.#text());
      const time = Date.now();
      this.#kept = [...this.#kept.filter((one) => time - one.time <= KEPT_MS), { time, metrics }];
      this.#told(null);
    } catch (error) {
      this.#told(error);
    }
    this.#next(EVERY_MS);
  }

  async #text() {
    const key = this.#key.value;
    const headers = key ? { "X-API-Key": key } : {};
    const url = new URL("page-data/metrics", document.baseURI);
    const answer = await fetch(url, { headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (answer.ok) return answer.text();
    if (answer.status === 401 && (await this.#key.ask(key))) return this.#text();
    if (answer.status === 401) this.#running = false; // whoever cancelled isn't asked every two seconds
    throw Object.assign(new Error("it could not be read"), { status: answer.status });
  }
}

/** What happened between two readings. */
export class Between {
  constructor(from, to) {
    this.from = from.metrics;
    this.to = to.metrics;
    this.seconds = (to.time - from.time) / 1000;
  }

  growth(name, fits) {
    return growth(sum(this.from, name, fits), sum(this.to, name, fits));
  }

  /** Per second; null: it is one reading. */
  rate(name, fits) {
    return this.seconds > 0 ? this.growth(name, fits) / this.seconds : null;
  }

  /** p50, p90 and p99 of a histogram of seconds, in ms; null: nothing was observed. */
  quantiles(name, fits) {
    const found = buckets(this.from, this.to, name, fits);
    return QUANTILES.map((share) => quantile(share, found)).map((value) => (value === null ? null : 1000 * value));
  }
}
