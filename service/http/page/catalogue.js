// Items: what is known of one, which are like it, and changing what is said of it.

import { asks, button, el } from "./dom.js";
import { count, date, decimal, short } from "./format.js";
import { facts, openers, Said, sides, table } from "./operator.js";
import { bar } from "./recommendations.js";
import { segment } from "./service.js";

const AT_ONCE = 30;
const SIMILAR = 10;
const WAIT_MS = 250;
const SPANS = ["the last day", "the last week", "the last month", "the last half year"];
const path = (id) => `items/${segment(id)}`;

export class View {
  #said = new Said();
  #list = el("ul", { class: "found" });
  #more = button("More", () => this.#look(this.#next), { hidden: true });
  #input = el("input", { type: "search", id: "items-q", maxlength: "256", autocomplete: "off", dir: "auto", oninput: () => this.#soon() });
  #item = el("section", { class: "panel", hidden: true, "aria-label": "Item" });
  #next = null;
  #timer = 0;
  #service;
  #items;

  constructor({ key, items }) {
    this.#service = this.#said.service(key);
    this.#items = items;
  }

  show(panel) {
    if (panel.children.length) return undefined;
    const form = el("form", { class: "row-of", role: "search", onsubmit: (event) => { event.preventDefault(); this.#look(); } },
      el("label", { for: "items-q" }, "Search"), this.#input);
    panel.append(this.#said.node, sides(this.#item, form, this.#list, this.#more));
    return this.#look();
  }

  #soon() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#look(), WAIT_MS);
  }

  #look(after = null) {
    const asked = this.#input.value.trim();
    return this.#said.during("Looking…", async () => {
      const query = [["limit", AT_ONCE], ["unavailable", true], ...(asked ? [["q", asked]] : []), ...(after ? [["after", after]] : [])];
      const { data } = await this.#service.get("items", query);
      if (asked !== this.#input.value.trim()) return;
      if (!after) this.#list.replaceChildren();
      this.#list.append(...openers(data.items.map((one) => this.#row(one))));
      this.#next = data.next;
      this.#more.hidden = !data.next;
      this.#said.say(this.#list.children.length ? "" : asked ? `No title holds ${asked}.` : "The catalogue has no items.");
    });
  }

  #row({ item_id: id, title, categories, available }) {
    const note = [...(available ? [] : ["not shown to anybody"]), ...categories].join(" · ") || "\u00a0";
    return [title ?? id, note, () => this.#open(id)];
  }

  #open(id, done = "") {
    return this.#said.during("Reading…", async () => {
      const [{ data: item }, { data: used }] = await Promise.all([path(id), `page-data/${path(id)}`].map((one) => this.#service.get(one)));
      let similar = [];
      try {
        similar = (await this.#service.get(`${path(id)}/similar`, [["k", SIMILAR]])).data.items;
      } catch (error) {
        if (error.status !== 404) throw error; // nothing is like an item the model does not know
      }
      this.#item.hidden = false;
      this.#item.replaceChildren(...this.#parts(item, used, similar));
      this.#said.say(done);
      this.#item.scrollIntoView({ block: "nearest" });
    });
  }

  #parts(item, used, similar) {
    const shown = item.available ? "yes" : item.hidden ? "no, it is hidden" : "no, not at this time";
    const values = Object.entries(item.attributes).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]);
    return [
      el("h2", { class: "big", dir: "auto" }, item.title ?? item.item_id),
      facts([
        ["Id", item.item_id],
        ["Categories", item.categories.join(", ") || "none"],
        ["In lists", shown],
        ...(item.available_from ? [["From", item.available_from]] : []),
        ...(item.available_until ? [["Until", item.available_until]] : []),
        ["The model", item.known ? "was trained on it" : "does not know it"],
        ["Said by", item.recorded ? "a record of its own, which stands in for the model's" : "the model's artefact alone"],
      ]),
      button(item.hidden ? "Show it again" : "Hide it", () => this.#hide(item)),
      item.recorded ? button("Delete its record", () => this.#drop(item), { class: "danger" }) : null,
      ...usage(used),
      values.length ? el("h3", {}, "Attributes") : null,
      values.length ? table("Attributes", ["Name", "Value"], values) : null,
      this.#form(item),
      el("h3", {}, "Similar ones"),
      similar.length
        ? el("ol", { class: "found" }, ...openers(similar.map((one) => [one.title ?? one.item_id, `cosine ${decimal(one.score)}`, () => this.#open(one.item_id)])))
        : el("p", { class: "hint" }, "None are known: the model was not trained on it."),
    ].filter((part) => part !== null);
  }

  #form(item) {
    const field = (id, label, node) => [el("label", { for: id }, label), node];
    const title = el("input", { id: "edit-title", value: item.title ?? "", dir: "auto" });
    const categories = el("input", { id: "edit-categories", value: item.categories.join(", "), dir: "auto" });
    const attributes = el("textarea", { id: "edit-attributes", rows: "6", spellcheck: "false" }, JSON.stringify(item.attributes, null, 2));
    const save = (event) => {
      event.preventDefault();
      let given;
      try {
        given = JSON.parse(attributes.value || "{}");
      } catch {
        return this.#said.fail(Object.assign(new Error("Attributes: this is no JSON. Names and values look like {\"price\": 9.5}."), { status: 422 }), () => save(event));
      }
      const list = categories.value.split(",").map((one) => one.trim()).filter(Boolean);
      return this.#put(item, { title: title.value.trim() || null, categories: list, attributes: given }, "Saved. Every worker heeds it within a moment.");
    };
    return el("details", {}, el("summary", {}, "Edit"),
      el("form", { class: "edit", onsubmit: save },
        ...field("edit-title", "Title", title),
        ...field("edit-categories", "Categories, with commas between", categories),
        ...field("edit-attributes", "Attributes, as JSON", attributes),
        el("button", { class: "primary" }, "Save")));
  }

  #hide(item) {
    const said = item.hidden ? "It may be in lists again." : "No list holds it any more.";
    return this.#put(item, { hidden: !item.hidden }, said);
  }

  /** A record replaces the one before: what is not changed is sent as it is. */
  #put(item, changes, said) {
    const kept = !item.recorded ? {} : Object.fromEntries(["title", "categories", "attributes", "hidden", "available_from", "available_until", "similar_to"].map((name) => [name, item[name]]));
    return this.#said.during("Saving…", async () => {
      const { data } = await this.#service.put(path(item.item_id), { ...kept, ...changes });
      this.#items.learn([{ item_id: data.item_id, title: data.title, categories: data.categories }]);
      await this.#open(item.item_id, said);
    });
  }

  #drop(item) {
    const said = `What was said of ${item.title ?? item.item_id} since is gone; what the model's artefact says holds again.`;
    asks({ title: "Delete its record?", said, yes: "Delete" }, () => this.#said.during("Deleting…", async () => {
      await this.#service.delete(path(item.item_id));
      if (item.known) return this.#open(item.item_id, "Its record is deleted.");
      this.#item.hidden = true;
      this.#said.say("It is deleted.");
    }));
  }
}

/** How often it was taken and shown, as far as that is counted. */
function usage({ interactions, since, a_day: daily, shown, taken }) {
  const most = Math.max(...daily) || 1;
  const rows = daily.map((number, place) => [SPANS[place], short(number), bar(number / most)]);
  return [
    el("h3", {}, "How it is used"),
    facts([
      ["Interactions", interactions === null ? "not counted: the live layer is off" : since ? `${short(interactions)} since ${date(new Date(since))}` : "none yet"],
      ["While little known", shown === null ? "not counted: the service does not explore" : `shown ${count(shown)} times and taken ${count(taken)} times of late`],
    ]),
    rows.length ? table("Interactions a day", ["On average over", "a day", "beside the most"], rows) : null,
  ];
}
