// Who is tried: in the address behind the #, which no server is sent.

import { segment } from "./service.js";

export class User extends EventTarget {
  constructor() {
    super();
    this.id = this.#ofAddress() ?? fresh();
    window.addEventListener("hashchange", () => {
      const id = this.#ofAddress();
      if (id && id !== this.id) this.become(id);
    });
  }

  /** The path of what the service has of the user. */
  get path() {
    return `users/${segment(this.id)}`;
  }

  /** Another one; null: somebody new. */
  become(id) {
    this.id = id || fresh();
    this.keep();
    this.dispatchEvent(new Event("change"));
  }

  /** In the address: a reload or a bookmark returns to this user. */
  keep() {
    history.replaceState(null, "", `#${new URLSearchParams({ user: this.id })}`);
  }

  #ofAddress() {
    return new URLSearchParams(location.hash.slice(1)).get("user") || null;
  }
}

/** An id nobody else has, of so many bytes. (crypto.randomUUID is not there over plain HTTP.) */
export function drawn(length) {
  const bytes = crypto.getRandomValues(new Uint8Array(length));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const fresh = () => `guest-${drawn(4)}`;
