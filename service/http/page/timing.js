// Where the time of the last step went: a bar for each of its two requests.

import { byId, el } from "./dom.js";
import { ms } from "./format.js";

const STAGES = ["queue", "log", "step", "prefill", "snapshot", "retrieve", "http"];
const MEANING = { http: "HTTP", network: "network and browser" };

/** calls: [name, {ms, stages}] each. */
export function showTiming(calls) {
  const longest = Math.max(...calls.map(([, call]) => call.ms));
  byId("timing").replaceChildren(...calls.map(([name, call]) => one(name, call, longest)));
}

function one(name, { ms: whole, stages }, longest) {
  const network = Math.max(0, whole - (stages.total ?? 0));
  const parts = STAGES.filter((stage) => stages[stage] > 0).map((stage) => [stage, stages[stage]]);
  parts.push(["network", network]);
  const bar = el("div", { class: "stages", "aria-hidden": "true" });
  for (const [stage, took] of parts) {
    const part = el("span", { class: `stage ${stage}` });
    part.style.width = `${(100 * took) / longest}%`;
    bar.append(part);
  }
  const said = parts.map(([stage, took]) =>
    el("li", {}, el("span", { class: `dot ${stage}`, "aria-hidden": "true" }), `${MEANING[stage] ?? stage} ${ms(took)}`),
  );
  return el(
    "div",
    { class: "call" },
    el("p", {}, el("code", {}, name), el("span", { class: "whole" }, ms(whole))),
    bar,
    el("ul", { class: "legend" }, ...said),
  );
}
