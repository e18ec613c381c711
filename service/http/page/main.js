// The page put together: what happens when somebody chooses a person, an item or a moment.

import { Clock } from "./clock.js";
import { asks, byId } from "./dom.js";
import { ms } from "./format.js";
import { History } from "./history.js";
import { interactions, Items, listed } from "./items.js";
import { ADMIN_KEY, API_KEY, Key } from "./key.js";
import { Options } from "./options.js";
import { People } from "./people.js";
import { Picker } from "./picker.js";
import { Recommendations } from "./recommendations.js";
import { showRequests } from "./request.js";
import { pairs, Service } from "./service.js";
import { Statement } from "./statement.js";
import { tabs } from "./tabs.js";
import { showTiming } from "./timing.js";
import { drawn, fresh, User } from "./user.js";

const K = 10;
const REASONS = 20; // asked for of an item; a few are said
const STATUSES = {
  unknown_item: "The model does not know this item: it is logged, and skipped.",
  late: "It is older than the newest interaction.",
  duplicate: "It was there already.",
};

const key = new Key(API_KEY);
const statement = new Statement();
const service = new Service(key, (said, about) => statement.wait(said, about));
const user = new User();
const items = new Items(service);
const act = { pick: (id) => take(id), similar: (id) => picker.similar(id) };
const picker = new Picker(service, items, act, (error, again) => statement.fail(error, again));
const list = new Recommendations(items, act);
const past = new History(service, items, user);
const clock = new Clock();
const options = new Options(service, items);
const people = new People(service, { look: (person) => queue(() => look(person)), beNew: () => user.become(null) });
let looked = null; // the person whose list is looked at; null: the user's own
let stored = null; // the last interaction
let underWay = Promise.resolve();
let asked = null;

function fail(error, again) {
  list.markStale("from before");
  statement.fail(error, again);
}

/** One step after the other, in the order of the clicks. */
function queue(step) {
  underWay = underWay.then(async () => {
    document.body.setAttribute("aria-busy", "true");
    await statement.timed(step);
    document.body.removeAttribute("aria-busy");
  });
  return underWay;
}

/** The list that is looked at, with the options and at the moment chosen. */
async function recommend({ signal, more = {} } = {}) {
  const chosen = { ...options.asked, ...(clock.at === null ? {} : { at: clock.at }) };
  const whose = looked ? { events: looked.events } : { user_id: user.id };
  showRequests({ ...whose, ...chosen }, looked ? null : stored, Boolean(key.value));
  if (looked) return service.post("recommend/session", { ...whose, k: K, ...chosen, ...more }, { signal });
  return service.get("recommend", pairs({ ...whose, k: K, explore: false, ...chosen, ...more }), signal);
}

/** Adds to the list why each item is in it, where that is wanted; nobody waits for it. */
async function explain() {
  const wanted = byId("why").checked && list.hasReasons;
  list.makeRoom(wanted);
  if (!wanted) return;
  try {
    await list.explain(() => recommend({ more: { explain: true, reasons: REASONS } }), looked ? "they" : "you");
  } catch (error) {
    statement.fail(error, explain);
  }
}

/** In large type: how many places changed, and the server's own time for it. */
function changes(changed, calls) {
  const own = calls.map((call) => call.stages.total ?? call.ms).reduce((one, other) => one + other, 0);
  if (changed === null) return `${K} items in ${ms(own)}`;
  return changed ? `${changed} of ${K} changed in ${ms(own)}` : `The same ${K}, in ${ms(own)}`;
}

/** Looks at what a person would be recommended; nothing is stored. */
async function look(person) {
  asked?.abort();
  looked = person;
  people.mark(person);
  clock.start(Date.parse(person.events.at(-1).timestamp));
  options.offerKinds(person.events);
  try {
    const answer = await recommend();
    const [changed] = await Promise.all([list.show(answer.data, { step: true }), past.showOf(person.events)]);
    statement.say(
      changes(changed, [answer]),
      `for somebody who likes ${listed(person.likes)}. You only look: nothing is stored. Take something, and you go on as somebody new with a copy of this history.`,
    );
    explain();
    showTiming([["The list", answer]]);
    byId("model").textContent = answer.data.edition;
  } catch (error) {
    fail(error, () => queue(() => look(person)));
  }
}

/** Takes an item, as whoever is shown at the moment of the click. */
function take(id) {
  const events = looked ? copies(looked.events, fresh()) : [];
  if (looked) goOn(events[0].user_id);
  const event = { user_id: user.id, item_id: id, event_id: drawn(16), ...(options.kind && { kind: options.kind }) };
  return queue(() => interact(event, events));
}

/** A person's history as somebody new's. It counts for nothing of what is popular. */
function copies(events, user_id) {
  return events.map(({ item_id, timestamp, kind }) => ({ user_id, item_id, timestamp, ...(kind && { kind }), weight: 0, event_id: drawn(16) }));
}

async function interact(event, before) {
  asked?.abort();
  let told;
  try {
    if (before.length) {
      const { data } = await service.post("interactions/batch", { interactions: before }, { kept: true });
      if (data.accepted < before.length) throw new Error("Not all of the history could be copied");
    }
    told = await service.post("interactions", event, { kept: true });
  } catch (error) {
    const again = () => queue(() => interact(event, before));
    return error.final ? statement.fail(error, again) : fail(error, again);
  }
  if (event.user_id !== user.id) return;
  user.keep();
  stored = event;
  clock.start(Date.parse(told.data.timestamp));
  await after(event, told, before.length);
}

/** Goes on as a new user, instead of a person that is looked at. */
function goOn(id) {
  looked = null;
  user.id = id;
  byId("user").value = id;
  people.mark(null);
}

/** Shows the list after an interaction. */
async function after(event, told, copied) {
  try {
    const answer = await recommend();
    const changed = await list.show(answer.data, { step: true });
    const whose = copied ? ` as somebody new, with ${interactions(copied)} copied` : "";
    statement.say(changes(changed, [told, answer]), `after you took ${items.title(event.item_id)}${whose}. ${STATUSES[told.data.status] ?? ""}`);
    explain();
    showTiming([["Taking it", told], ["The list", answer]]);
    byId("model").textContent = answer.data.edition;
    await past.refresh(told.data.version);
  } catch (error) {
    fail(error, () => queue(() => after(event, told, copied)));
  }
}

/** Shows the user as the service knows them. */
async function begin() {
  asked?.abort();
  looked = null;
  people.mark(null);
  byId("user").value = user.id;
  try {
    clock.start(null);
    const answer = await recommend();
    if (answer.data.stale && !answer.data.version) return await beginUnread(answer);
    const [last, changed] = await Promise.all([past.refresh(answer.data.version), list.show(answer.data, { step: true })]);
    clock.start(last);
    explain();
    byId("model").textContent = answer.data.edition;
    const known = answer.data.version;
    if (known) statement.say(changes(changed, [answer]), `for ${user.id}, of whom ${interactions(known)} are known.`);
    else statement.say("Take something you like", `Nothing is known of you yet, so this is what is popular (${ms(answer.stages.total ?? answer.ms)}). Or tap a person above.`);
  } catch (error) {
    fail(error, () => queue(begin));
  }
}

/** Shows what is popular while nobody can say what is known of the user. */
async function beginUnread(answer) {
  past.unread();
  await list.show(answer.data, { step: true });
  const problem = { message: "The store can't be read just now", hint: "So this is what is popular. Try again when you like." };
  statement.fail(problem, () => queue(begin));
}

/** Asks for another moment, or with other options; only the newest question is answered. */
async function ask() {
  asked?.abort();
  asked = new AbortController();
  const { signal } = asked;
  try {
    const answer = await recommend({ signal });
    signal.throwIfAborted();
    const changed = await list.show(answer.data, { step: false });
    explain();
    const found = answer.data.items.length;
    const few = found < K ? ` ${found ? `Only ${found}` : "No"} items are left by these filters.` : "";
    statement.say(changes(changed, [answer]), `asked for ${byId("gap-said").textContent}.${few}`);
  } catch (error) {
    if (!signal.aborted) fail(error, ask);
  }
}

async function forget() {
  const { id } = user;
  try {
    const { data } = await service.delete(user.path);
    await begin();
    statement.say(data.erased ? "Forgotten" : "Nothing was known", data.erased ? `${id} is forgotten: record, snapshots and states are gone.` : `Nothing was known of ${id}.`);
  } catch (error) {
    fail(error, () => queue(forget));
  }
}

byId("user-form").addEventListener("submit", (event) => {
  event.preventDefault();
  user.become(byId("user").value.trim());
});
byId("forget-user").addEventListener("click", () => {
  const said = `All interactions of ${user.id} and everything computed from them will be erased.`;
  asks({ title: "Forget this user?", said, yes: "Forget" }, () => queue(forget));
});
user.addEventListener("change", () => {
  stored = null;
  queue(begin);
});
clock.addEventListener("change", ask);
options.addEventListener("change", ask);
byId("why").addEventListener("change", explain);
const given = { key, adminKey: new Key(ADMIN_KEY), service, items, user };
const named = (name, title) => ({ name, title, open: async () => {
  const [{ View }, { styled }] = await Promise.all([import(`./${name}.js`), import("./operator.js")]);
  await styled();
  return new View(given);
} });
tabs([{ name: "try", title: "Try it", open: async () => ({}) }, named("health", "Health"), named("learning", "Learning"), named("users", "Users"), named("catalogue", "Items"), named("compare", "Compare")]);

queue(begin);
people.start();
picker.start();
