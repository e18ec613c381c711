// The requests that the page has just made, to copy.

import { byId, el } from "./dom.js";
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
  const call = "user_id" in asked ? ["recommend", quotedPython(asked.user_id)] : ["recommend_session", python(asked.events.map((event) => [event.item_id, event.timestamp ?? null]))];
  const named = Object.entries(options).filter(([name]) => !["user_id", "events"].includes(name));
  const given = named.map(([name, value]) => `, ${name}=${python(name === "at" ? new Date(value).toISOString() : value)}`).join("");
  const list = `    print(service.${call[0]}(${call[1].replaceAll(": None", "")}${given})["items"])`;
  const taken = stored && `    service.post(Interaction(${quotedPython(stored.user_id)}, ${quotedPython(stored.item_id)}${stored.kind ? `, kind=${quotedPython(stored.kind)}` : ""}))`;
  const client = `with Client(${quotedPython(base())}${hasKey ? ', api_key=os.environ["KEY"]' : ""}) as service:`;
  const imports = [...(hasKey ? ["import os", ""] : []), `from tim4rec_client import Client${stored ? ", Interaction" : ""}`, ""];
  byId("request-texts").replaceChildren(
    text("curl", [...(stored ? [curl("interactions", null, stored, hasKey)] : []), listCurl(options, hasKey)].join("\n")),
    text("Python", [...imports, client, ...(taken ? [taken] : []), list].join("\n")),
  );
}

const base = () => new URL(".", document.baseURI).href.replace(/\/$/, "");
const quotedPython = (value) => JSON.stringify(value);
const shell = (value) => `'${value.replaceAll("'", "'\\''")}'`;

function listCurl(options, hasKey) {
  if (!("user_id" in options)) return curl("recommend/session", null, options, hasKey);
  return curl("recommend", options, null, hasKey);
}

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
  const copy = navigator.clipboard && el("button", { type: "button", onclick: async () => {
    await navigator.clipboard.writeText(said);
    copy.textContent = "Copied";
  } }, "Copy");
  return el("div", { class: "snippet" }, el("h3", {}, name, copy ?? null), el("pre", { tabindex: 0, "aria-label": `${name}` }, said));
}
