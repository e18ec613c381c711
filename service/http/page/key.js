// The API key: kept for this tab, asked for where the service wants one.

import { byId } from "./dom.js";

const PLACE = "tim4rec.key";

export class Key {
  #asked = null;

  get value() {
    return sessionStorage.getItem(PLACE);
  }

  /** Resolves to whether a key was given. `refused`: the key that the service did not take. */
  ask(refused) {
    if (refused !== this.value) return Promise.resolve(true); // another one was given meanwhile
    this.#asked ??= this.#show(refused).finally(() => (this.#asked = null));
    return this.#asked;
  }

  #show(refused) {
    const [dialog, input] = [byId("key"), byId("key-value")];
    byId("key-said").textContent = refused
      ? "The one you gave is not one of its keys."
      : "It answers only to those who have one of its keys.";
    input.value = "";
    return new Promise((resolve) => {
      const done = new AbortController();
      const on = (node, event, act) => node.addEventListener(event, act, { signal: done.signal });
      on(byId("key-form"), "submit", (event) => {
        event.preventDefault();
        sessionStorage.setItem(PLACE, input.value);
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
