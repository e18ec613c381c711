// The requests that the page has just made, to copy.

import { button, byId, el } from "./dom.js";
import { pairs } from "./service.js";

const KEY = "-H \"X-API-Key: $KEY\"";

/**
 * Shows how to ask for the list, and to tell of an interaction.
 *
 * asked: {user_id or events, and options} as the service takes them; stored: an interaction, null:
 * there was none.
 */
export function showRequests(asked, stored, hasKey) {
  const options = { k: 10, ...asked };
  const call = "user_id" in asked ? ["recommend", python(asked.user_id)] : ["recommend_session", python(asked.events.map((event) => [event.item_id, event.timestamp ?? null]))];
  const named = Object.entries(options).filter(([name]) => !["user_id", "events"].includes(name));
  const given = named.map(([name, value]) => `, ${name}=${python(name === "at" ? new Date(value).toISOString() : value)}`).join("");
  const ask = "user_id" in asked ? curl("recommend", options, null, hasKey) : curl("recommend/session", null, options, hasKey);
  const list = `    print(service.${call[0]}(${call[1].replaceAll(": None", "")}${given})["items"])`;
  const taken = stored && `    service.post(Interaction(${python(stored.user_id)}, ${python(stored.item_id)}${stored.kind ? `, kind=${python(stored.kind)}` : ""}))`;
  const client = `with Client(${python(base())}${hasKey ? ', api_key=os.environ["KEY"]' : ""}) as service:`;
  const imports = [...(hasKey ? ["import os", ""] : []), `from tim4rec_client import Client${stored ? ", Interaction" : ""}`, ""];
  byId("request-texts").replaceChildren(
    text("curl", [...(stored ? [curl("interactions", null, stored, hasKey)] : []), ask].join("\n")),
    text("Python", [...imports, client, ...(taken ? [taken] : []), list].join("\n")),
  );
}

const base = () => new URL(".", document.baseURI).href.replace(/\/$/, "");
const shell = (value) => `'${value.replaceAll("'", "'\\''")}'`;

function curl(path, query, body, hasKey) {
  const found = query ? `?${new URLSearchParams(pairs(query))}` : "";
  const json = body ? ` -H 'Content-Type: application/json' \\\n  -d ${shell(JSON.stringify(body))}` : "";
  return `curl ${shell(`${base()}/${path}${found}`)}${hasKey ? ` ${KEY}` : ""}${json}`;
}

/** A value as Python writes it. */
function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (!Array.isArray(value)) return JSON.stringify(value);
  return `[${value.map((one) => (Array.isArray(one) ? `(${one.map(python).join(", ")})` : python(one))).join(", ")}]`;
}

function text(name, said) {
  const copy = navigator.clipboard && button("Copy", async () => {
    await navigator.clipboard.writeText(said);
    copy.textContent = "Copied";
  });
  return el("div", { class: "snippet" }, el("h3", {}, name, copy ?? null), el("pre", { tabindex: 0, "aria-label": `${name}` }, said));
}
