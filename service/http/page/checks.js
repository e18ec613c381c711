// What an operator looks at first: one fact each, and whether it is well.

import { ago, bytes, count, ms, percent, several, short } from "./format.js";
import { sum } from "./metrics.js";

export const DURATION = "tim4rec_request_duration_seconds";
const [OK, WATCH, WRONG] = ["ok", "watch", "wrong"];
const DAY_MS = 86_400_000;

// The page's own questions are no traffic of the service; probes are none either.
export const counted = ({ route }) => !/^\/(page.*|metrics|livez|readyz)?$/.test(route);
const failed = (labels) => counted(labels) && labels.status.startsWith("5");

const used = (share) => (share > 0.95 ? WRONG : share > 0.8 ? WATCH : OK);
const worst = (...levels) => [WRONG, WATCH, OK].find((level) => levels.includes(level));
const fact = (name, level, value, note) => ({ name, level, value, note });

/** {name, level, value, note} each. recent: the last minute, a Between. */
export function checks(recent) {
  return [workers, store, requests, errors, latency, queue, pool, memory, disk, models, backup]
    .map((check) => check(recent, (name, fits) => sum(recent.to, name, fits)))
    .filter((found) => found !== null);
}

function workers(recent, of) {
  const [number, started] = [of("tim4rec_workers"), recent.growth("tim4rec_worker_starts_total")];
  const ready = of("tim4rec_ready") === 1;
  const again = recent.seconds > 0 && started > 0;
  const note = again ? `${count(started)} started in the last minute` : ready ? "all ready" : "one is starting or stopping";
  return fact("Workers", again || !ready ? WATCH : OK, count(number), note);
}

function store(recent, of) {
  const up = of("tim4rec_store_up") === 1;
  const faults = recent.seconds > 0 ? recent.growth("tim4rec_store_errors_total") : 0;
  const unsaved = of("tim4rec_store_persistence_failed") > 0;
  if (!up) return fact("Store", WRONG, "down", "nothing is stored; lists are the popular ones");
  const [half, , most] = recent.quantiles("tim4rec_store_duration_seconds", () => true);
  const times = half === null ? "" : `round trip ${ms(half)}, p99 ${ms(most)}`;
  if (unsaved) return fact("Store", WRONG, "not saving", "its last write to disk failed");
  return fact("Store", faults ? WATCH : OK, "up", faults ? `${several(faults, "failed round trip")} in the last minute` : times);
}

function requests(recent, of) {
  const rate = recent.rate(`${DURATION}_count`, counted);
  const all = of(`${DURATION}_count`, counted);
  return fact("Requests", OK, rate === null ? count(all) : `${short(rate)}/s`, `${count(all)} since the start`);
}

function errors(recent, of) {
  const all = recent.growth(`${DURATION}_count`, counted);
  const wrong = recent.growth(`${DURATION}_count`, failed);
  const share = all ? wrong / all : 0;
  const level = !wrong || !(recent.seconds > 0) ? OK : share > 0.01 ? WRONG : WATCH;
  const refused = of("tim4rec_refused_requests_total");
  return fact("Errors", level, all ? percent(share) : "none", `${count(wrong)} of ${count(all)}; ${count(refused)} refused since the start`);
}

function latency(recent) {
  const [half, more, most] = recent.quantiles(DURATION, counted);
  if (half === null) return fact("Answers take", OK, "–", "nobody asked in the last minute");
  return fact("Answers take", most > 1000 ? WATCH : OK, ms(half), `p90 ${ms(more)}, p99 ${ms(most)}`);
}

function queue(recent, of) {
  const [waiting, room] = [of("tim4rec_queue_requests"), of("tim4rec_queue_capacity_requests")];
  return fact("Queue", waiting > room / 2 ? WATCH : OK, count(waiting), `waiting, room for ${count(room)}`);
}

function pool(recent, of) {
  const hits = recent.growth("tim4rec_pool_lookups_total", ({ result }) => result === "hit");
  const all = recent.growth("tim4rec_pool_lookups_total");
  const [held, room] = [of("tim4rec_pool_users"), of("tim4rec_pool_capacity_users")];
  const note = `${several(held, "user")} in memory, room for ${count(room)}`;
  return fact("Found in memory", OK, all ? percent(hits / all) : "–", note);
}

function memory(recent, of) {
  const [own, stores, limit] = [of("tim4rec_resident_memory_bytes"), of("tim4rec_store_memory_bytes"), of("tim4rec_store_memory_limit_bytes")];
  const note = `the store: ${bytes(stores)}${limit ? ` of ${bytes(limit)}` : ""}`;
  return fact("Memory", limit ? used(stores / limit) : OK, bytes(own), note);
}

function disk(recent, of) {
  const [size, free] = [of("tim4rec_store_disk_bytes"), of("tim4rec_store_disk_free_bytes")];
  return size ? fact("Disk", used(1 - free / size), `${bytes(free)} free`, `of ${bytes(size)}`) : null;
}

function models(recent, of) {
  const behind = of("tim4rec_model_behind") > 0;
  const unequal = recent.seconds > 0 ? recent.growth("tim4rec_exactness_samples_total", ({ result }) => result === "different") : 0;
  const level = worst(behind ? WRONG : OK, unequal ? WRONG : OK);
  if (behind) return fact("Models", level, "behind", "a worker can't serve what is set");
  if (unequal) return fact("Models", level, "inexact", `${several(unequal, "state")} not equal to its recomputation`);
  const equal = of("tim4rec_exactness_samples_total", ({ result }) => result === "equal");
  return fact("Models", level, "as set", equal ? `${several(equal, "state")} recomputed, all equal` : "no state recomputed yet");
}

function backup(recent, of) {
  const at = 1000 * of("tim4rec_backup_timestamp_seconds");
  if (!at) return fact("Backup", OK, "none", "none was ever finished");
  return fact("Backup", Date.now() - at > 2 * DAY_MS ? WATCH : OK, ago(at), "the last whole one");
}
