// Learning: which model serves whom, and what became of each that was trained.

import { asks, button, el } from "./dom.js";
import { ago, count, date, decimal, percent, several, span } from "./format.js";
import { facts, Said, table } from "./operator.js";
import { segment } from "./service.js";

const ENTRIES = 300;
const STEPS = { scoring: "scored anew", warm: "trained further", scratch: "trained from nothing" };
const GOOD = ["promoted", "published"];
const BAD = ["failed", "given up", "refused", "taken back", "rolled back"];

const points = (value) => `${value > 0 ? "+" : ""}${decimal(100 * value, 2)}`.replace("-", "−");
const signed = (value) => `${value > 0 ? "+" : ""}${decimal(value, 4)}`.replace("-", "−");
const when = (at) => el("time", { datetime: at, title: date(new Date(at)) }, ago(new Date(at)));

export class View {
  #said = new Said();
  #serving = el("div", { class: "stack" });
  #rounds = el("ol", { class: "rounds" });
  #note = el("p", { class: "hint" });
  #service;

  constructor({ adminKey }) {
    this.#service = this.#said.service(adminKey);
  }

  show(panel) {
    if (!panel.children.length) panel.append(this.#said.node, el("div", { class: "stack" }, this.#serving, this.#journal()));
    return this.#read();
  }

  #journal() {
    const refresh = button("Read anew", () => this.#read());
    return el("section", { class: "panel", "aria-labelledby": "journal-title" },
      el("div", { class: "heading" }, el("h2", { id: "journal-title" }, "What was trained"), refresh), this.#note, this.#rounds);
  }

  #read(done = "") {
    return this.#said.during("Reading…", async () => {
      const { data: served } = await this.#service.get("admin/model");
      this.#serving.replaceChildren(...this.#served(served));
      const { data: { entries } } = await this.#service.get("admin/journal", [["limit", ENTRIES]]);
      const rounds = byRound(entries);
      this.#note.textContent = rounds.length ? "The newest first." : "The journal has no entry: no learner has worked on this folder of models yet.";
      this.#rounds.replaceChildren(...rounds.map((all) => this.#round(all, served)));
      this.#said.say(done);
    });
  }

  #served(served) {
    const behind = served.processes.filter(({ version, fault }) => fault || version !== served.version);
    const rest = 1 - served.trials.reduce((all, { share }) => all + share, 0);
    const base = el("article", { class: "panel" },
      el("h2", {}, served.trials.length ? "What the others get" : "What everybody gets"),
      el("p", { class: "big", dir: "auto" }, served.base?.name ?? "the model the service was started with"),
      facts([
        ["Share of the users", percent(rest)],
        ["Processes", behind.length ? `${count(behind.length)} of ${count(served.processes.length)} behind: ${behind[0].fault ?? "taking it over"}` : `${count(served.processes.length)}, all serve it`],
        ["Kinds", served.kinds || "all rows alike"],
        ...(served.base?.live === false ? [["Live layer", "off"]] : []),
      ]),
      served.base && this.#button("Go back to the start", "danger",
        "Everybody gets the model the service was started with, and all trials end.", () => this.#service.delete("admin/model")),
    );
    return [
      el("div", { class: "pairs fill" }, base, ...served.trials.map((trial) => this.#trial(trial))),
      ...(served.available_fault ? [el("p", { class: "notice" }, "The folder of models can't be read just now.")] : []),
      this.#choice(served),
      ...(served.decisions.length ? [decided(served.decisions)] : []),
    ];
  }

  #trial(trial) {
    return el("article", { class: "panel" },
      el("h2", {}, "On trial"),
      el("p", { class: "big", dir: "auto" }, trial.name),
      facts([
        ["Share of the users", percent(trial.share)],
        ["Since", ago(new Date(trial.since))],
        ["Ends", trial.decide ? "by itself, by what its users take" : "when somebody ends it"],
        ...outcome(trial.figures),
        ["By now", trial.decision],
      ]),
      this.#button("End the trial", "danger", `Nobody gets ${trial.name} any more.`, () =>
        this.#service.delete(`admin/model/trials/${segment(trial.name)}`)),
      this.#button("Give it to everybody", "", `Everybody gets ${trial.name}.`, () => this.#service.post("admin/model", { model: trial.name })),
    );
  }

  #choice(served) {
    const others = served.available.filter(({ name }) => name !== served.base?.name);
    if (!others.length) return el("p", { class: "hint" }, "There is no other model in the folder.");
    const select = el("select", { id: "another" }, ...others.map(({ name }) => el("option", {}, name)));
    return el("section", { class: "panel row-of", "aria-labelledby": "choice-title" },
      el("h2", { id: "choice-title" }, "Serve another one"),
      el("label", { for: "another", class: "unseen" }, "Model"),
      select,
      this.#button("Give it to everybody", "", () => `Everybody gets ${select.value}, but users of a trial.`, () =>
        this.#service.post("admin/model", { model: select.value })),
    );
  }

  #round(all, served) {
    const of = (name) => all.find((entry) => entry[name] !== null)?.[name];
    const model = of("model");
    const there = served.available.some(({ name }) => name === model);
    const known = [
      ["Trained from", of("parent") ?? "nothing published"],
      ["On", of("until") ? `interactions until ${date(new Date(of("until")))}${of("events") ? `, ${several(of("events"), "new one")}` : ""}` : null],
      ["Verdict", of("verdict")],
      ["Took", of("seconds") ? span(Object.values(of("seconds")).reduce((one, other) => one + other, 0)) : null],
      ["Reason", of("reason")],
    ].filter(([, said]) => said);
    const chips = all.map(({ what, at }) => el("li", { "data-level": GOOD.includes(what) ? "ok" : BAD.includes(what) ? "wrong" : "watch" }, el("b", {}, what), " ", when(at)));
    return el("li", {},
      el("div", { class: "heading" },
        el("h3", { dir: "auto" }, model ?? "No model came of it"),
        el("span", { class: "chip" }, model && served.base?.name === model ? "serves everybody" : (STEPS[of("step")] ?? ""))),
      el("ul", { class: "steps" }, ...chips),
      facts(known),
      judged(of("figures")),
      there && served.base?.name !== model
        ? this.#button("Roll back to this one", "", `Everybody gets ${model}, but users of a trial. The learner writes it into the journal when it looks next.`, () => this.#service.post("admin/model", { model }))
        : null,
    );
  }

  #button(text, kind, question, act) {
    const ask = () => {
      const said = typeof question === "function" ? question() : question;
      asks({ title: `${text}?`, said, yes: text }, () => this.#said.during("The service is told…", async () => {
        await act();
        await this.#read(`${said} Every process takes it over within a moment.`);
      }));
    };
    return button(text, ask, { class: kind || null });
  }
}

/** Entries of a round, the newest first; of one without, each for itself. */
function byRound(entries) {
  const rounds = new Map();
  for (const entry of entries) {
    const name = entry.model ?? entry.round ?? entry.at;
    rounds.set(name, [...(rounds.get(name) ?? []), entry]);
  }
  return [...rounds.values()];
}

function outcome({ base, trial, difference, low, high }) {
  const share = ({ shown, taken }) => `${count(taken)} of ${count(shown)} users took something`;
  const interval = difference === null ? "no users observed yet" : `${points(difference)} points (95 %: ${points(low)} to ${points(high)})`;
  return [["Its users", share(trial)], ["The others", share(base)], ["Difference", interval]];
}

function decided(decisions) {
  const rows = decisions.map(({ trial, decision, reason, at, figures }) => [trial, decision.replace("_", " "), reason, outcome(figures)[2][1], ago(new Date(at))]);
  return el("section", { class: "panel", "aria-labelledby": "decided-title" },
    el("h2", { id: "decided-title" }, "Trials that ended by themselves"),
    table("Trials that ended", ["Trial", "Became", "As it was", "Difference", "When"], rows));
}

/** The judge's figures: means by policy, and the difference with its interval. */
function judged(figures) {
  if (!figures?.difference) return null;
  const metrics = Object.keys(figures.difference);
  const rows = Object.entries(figures.figures ?? {}).map(([policy, own]) => [policy, ...metrics.map((metric) => (typeof own[metric] === "number" ? decimal(own[metric], 4) : "–"))]);
  const difference = ["difference (95 %)", ...metrics.map((metric) => {
    const { mean, low, high } = figures.difference[metric];
    return `${signed(mean)} (${signed(low)} to ${signed(high)})`;
  })];
  return el("details", {},
    el("summary", {}, `The judge's figures${figures.events ? `, of ${several(figures.events, "interaction")} of ${several(figures.users, "user")}` : ""}`),
    table("The judge's figures", ["Means", ...metrics], [...rows, difference]));
}
