// A key: kept for this tab, asked for where the service wants one.

import { byId } from "./dom.js";

export const API_KEY = { place: "tim4rec.key", title: "This service wants a key", why: "It answers only to those who have one of its keys." };
export const ADMIN_KEY = { place: "tim4rec.admin-key", title: "This wants an admin key", why: "It is another one than the key of the API: for those who run the service." };

export class Key {
  #asked = null;
  #kind;

  /** kind: API_KEY or ADMIN_KEY; each is kept apart. */
  constructor(kind) {
    this.#kind = kind;
  }

  get value() {
    return sessionStorage.getItem(this.#kind.place);
  }

  /** Resolves to whether a key was given. `refused`: the key that the service did not take. */
  ask(refused) {
    if (refused !== this.value) return Promise.resolve(true); // another one was given meanwhile
    this.#asked ??= this.#show(refused).finally(() => (this.#asked = null));
    return this.#asked;
  }

  #show(refused) {
    const [dialog, input] = [byId("key"), byId("key-value")];
    byId("key-title").textContent = this.#kind.title;
    byId("key-said").textContent = refused
      ? "The one you gave is not one of its keys."
      : this.#kind.why;
    input.value = "";
    return new Promise((resolve) => {
      const done = new AbortController();
      const on = (node, event, act) => node.addEventListener(event, act, { signal: done.signal });
      on(byId("key-form"), "submit", (event) => {
        event.preventDefault();
        sessionStorage.setItem(this.#kind.place, input.value);
        dialog.close("given");
      });
      on(byId("key-no"), "click", () => dialog.close(""));
      on(dialog, "close", () => {
        done.abort();
        resolve(dialog.returnValue === "given");
      });
      dialog.returnValue = "";
      dialog.showModal();
    });
  }
}
