// How good the lists are for those who use them: judged just before each sampled interaction.

import { el } from "./dom.js";
import { count, decimal } from "./format.js";
import { table } from "./operator.js";

const Z = 1.96;
const ENOUGH = 100;

/** Wilson's interval of a share, 95 %. */
function interval(hits, all) {
  const share = hits / all;
  const middle = (share + Z ** 2 / (2 * all)) / (1 + Z ** 2 / all);
  const half = (Z * Math.sqrt((share * (1 - share)) / all + Z ** 2 / (4 * all ** 2))) / (1 + Z ** 2 / all);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

/** A row for each model and whether it knows the item, of all since the workers started. */
function rows(metrics) {
  const value = (name, model, item, by) =>
    (metrics[`tim4rec_quality_${name}_total`] ?? [])
      .filter(({ labels }) => labels.model === model && labels.item === item && labels.by === by)
      .reduce((all, one) => all + one.value, 0);
  return (metrics.tim4rec_quality_events_total ?? [])
    .filter((one) => one.value > 0)
    .map(({ labels: { model, item }, value: all }) => {
      const [hits, popular] = ["served", "popularity"].map((by) => value("hits", model, item, by));
      const [ndcg, other] = ["served", "popularity"].map((by) => value("ndcg", model, item, by) / all);
      const range = interval(hits, all).map((end) => decimal(end, 3)).join(" to ");
      return {
        cells: [`${model}, ${item} items`, count(all), decimal(hits / all, 3), range, decimal(popular / all, 3), decimal(ndcg, 3), decimal(other, 3)],
        all,
        item,
        better: interval(hits, all)[0] > popular / all,
        worse: interval(hits, all)[1] < popular / all,
      };
    });
}

function verdict(found) {
  const known = found.filter(({ item }) => item === "known");
  const most = known.sort((one, other) => other.all - one.all)[0] ?? found[0];
  if (most.all < ENOUGH) return `Too few to say: ${count(most.all)} judged so far.`;
  if (most.better) return "The lists find what people take next more often than the ten most popular items do.";
  if (most.worse) return "The ten most popular items find what people take next more often than the lists do.";
  return "The lists find what people take next about as often as the ten most popular items do.";
}

/** Whether the lists are good, as far as it is sampled. */
export function quality(metrics) {
  const found = rows(metrics);
  if (!found.length) {
    return [el("p", { class: "hint" }, "No interaction was judged yet. The setting quality_sample says what share of them is.")];
  }
  const columns = ["Model", "Judged", "HR@10", "95 % of it", "Popularity", "NDCG@10", "Popularity"];
  return [
    el("p", {}, verdict(found)),
    table("Quality of the lists", columns, found.map(({ cells }) => cells)),
    el("p", { class: "hint" }, "HR@10: how often the item somebody took was among the ten they would have been given just before. Popularity: the same of the ten most popular. Since the workers started."),
  ];
}
