// The page put together: what happens when somebody chooses an item, a user or a moment.

import { Clock } from "./clock.js";
import { byId } from "./dom.js";
import { ms, several } from "./format.js";
import { History } from "./history.js";
import { Items } from "./items.js";
import { Key } from "./key.js";
import { Picker } from "./picker.js";
import { Recommendations } from "./recommendations.js";
import { Service } from "./service.js";
import { tabs } from "./tabs.js";
import { showTiming } from "./timing.js";
import { drawn, User } from "./user.js";

const K = 10;
const STATUSES = {
  unknown_item: " The model does not know this item: it is logged, and skipped.",
  late: " It is older than the newest interaction.",
  duplicate: " It was there already.",
};

const key = new Key();
const service = new Service(key, say);
const user = new User();
const items = new Items(service);
const act = { pick: (id) => choose(user.id, id, drawn(16)), similar: (id) => picker.similar(id) };
const picker = new Picker(service, items, act, fail);
const list = new Recommendations(items, act);
const past = new History(service, items, user);
const clock = new Clock();
const undone = new Set();
let underWay = Promise.resolve();
let asked = null;

function say(text) {
  byId("said").textContent = text;
  byId("said").classList.remove("wrong");
  byId("again").hidden = true;
  undone.clear();
}

/** Says what went wrong; `again`: what the button does, beside what else failed since. */
function fail(error, again) {
  const others = [...undone];
  say(`That did not work: ${error.message}.`.replace(/\.\.$/, "."));
  for (const one of [...others, again]) undone.add(one);
  byId("said").classList.add("wrong");
  byId("again").hidden = false;
}

/** One step after the other, in the order of the clicks. */
function queue(step) {
  underWay = underWay.then(async () => {
    document.body.setAttribute("aria-busy", "true");
    await step();
    document.body.removeAttribute("aria-busy");
  });
  return underWay;
}

function recommend(at, signal, more = []) {
  const asked = [["user_id", user.id], ["k", K], ["explore", false]];
  const query = [...asked, ...(at === null ? [] : [["at", at]]), ...more];
  return service.get("recommend", query, signal);
}

/** Adds to the list why each item is in it, where that is wanted; nobody waits for it. */
async function explain() {
  if (!byId("why").checked) return list.unexplain();
  try {
    await list.explain(() => recommend(clock.at, null, [["explain", true], ["reasons", 1]]));
  } catch (error) {
    fail(error, explain);
  }
}

/** With the user of the moment of the click, whoever is shown when its turn comes. */
function choose(who, id, event_id) {
  return queue(() => interact(who, id, event_id));
}

async function interact(who, id, event_id) {
  asked?.abort();
  try {
    const stored = await service.post("interactions", { user_id: who, item_id: id, event_id });
    if (who !== user.id) return;
    const answer = await recommend(null);
    const changed = await list.show(answer.data, { step: true });
    clock.start(Date.parse(stored.data.timestamp));
    const [one, two] = [stored, answer].map((call) => call.stages.total);
    const server = one && two ? ` (the server: ${ms(one)} and ${ms(two)})` : "";
    const places = changed ? `the list changed in ${several(changed, "place")}` : "the list is the same";
    say(
      `1 interaction: stored in ${ms(stored.ms)}, new list in ${ms(answer.ms)}${server}; ${places}.` +
        (STATUSES[stored.data.status] ?? ""),
    );
    explain();
    showTiming([["POST /interactions", stored], ["GET /recommend", answer]]);
    byId("model").textContent = answer.data.edition;
    await past.refresh(stored.data.version);
  } catch (error) {
    fail(error, () => choose(who, id, event_id));
  }
}

/** Shows the user as the service knows them. */
async function begin() {
  asked?.abort();
  byId("user").value = user.id;
  list.reset();
  try {
    const answer = await recommend(null);
    const [last] = await Promise.all([past.refresh(answer.data.version), list.show(answer.data, { step: true })]);
    clock.start(last);
    explain();
    byId("model").textContent = answer.data.edition;
    const known = answer.data.version;
    say(known ? `${user.id} has ${several(known, "interaction")}; the list came in ${ms(answer.ms)}.` : `Nothing is known of ${user.id}: this is what is popular. Choose an item.`);
  } catch (error) {
    fail(error, () => queue(begin));
  }
}

/** Asks for another moment; only the newest question is answered. */
async function ask() {
  asked?.abort();
  asked = new AbortController();
  const { signal } = asked;
  try {
    const answer = await recommend(clock.at, signal);
    signal.throwIfAborted();
    const changed = await list.show(answer.data, { step: false });
    explain();
    const moment = byId("gap-said").textContent;
    say(`Asked for ${moment}: ${changed ? `${several(changed, "place")} of the list differ${changed === 1 ? "s" : ""}` : "the same list"}, in ${ms(answer.ms)}.`);
  } catch (error) {
    if (!signal.aborted) fail(error, ask);
  }
}

async function forget() {
  const { id } = user;
  try {
    const { data } = await service.delete(user.path);
    await begin();
    say(data.erased ? `${id} is forgotten: record, snapshots and states are gone.` : `Nothing was known of ${id}.`);
  } catch (error) {
    fail(error, () => queue(forget));
  }
}

byId("again").addEventListener("click", () => {
  const all = [...undone];
  say("Trying again…");
  for (const one of all) one();
});
byId("user-form").addEventListener("submit", (event) => {
  event.preventDefault();
  user.become(byId("user").value.trim());
});
byId("new-user").addEventListener("click", () => user.become(null));
byId("forget-user").addEventListener("click", () => {
  byId("forget-said").textContent = `All interactions of ${user.id} and everything computed from them will be erased.`;
  byId("forget").showModal();
});
byId("forget-no").addEventListener("click", () => byId("forget").close());
byId("forget-yes").addEventListener("click", () => {
  byId("forget").close();
  queue(forget);
});
user.addEventListener("change", () => queue(begin));
clock.addEventListener("change", ask);
byId("why").addEventListener("change", explain);
const given = { key, service, items };
const named = (name, title) => ({ name, title, open: async () => (await import(`./${name}.js`)).view(given) });
tabs([{ name: "try", title: "Try it", open: async () => ({ show() {}, hide() {} }) }, named("charts", "Live charts")]);

queue(begin);
picker.start();
