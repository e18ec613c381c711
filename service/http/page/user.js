// Who is tried: in the address behind the #, which no server is sent, and remembered.

const PLACE = "tim4rec.user";

export class User extends EventTarget {
  constructor() {
    super();
    this.id = this.#ofAddress() ?? localStorage.getItem(PLACE) ?? fresh();
    this.#keep();
    window.addEventListener("hashchange", () => {
      const id = this.#ofAddress();
      if (id && id !== this.id) this.become(id);
    });
  }

  /** The path of what the service has of the user. */
  get path() {
    // A dot alone would be taken for a folder.
    return `users/${encodeURIComponent(this.id).replaceAll(".", "%2E")}`;
  }

  become(id) {
    this.id = id || fresh();
    this.#keep();
    this.dispatchEvent(new Event("change"));
  }

  #ofAddress() {
    return new URLSearchParams(location.hash.slice(1)).get("user") || null;
  }

  #keep() {
    localStorage.setItem(PLACE, this.id);
    history.replaceState(null, "", `#${new URLSearchParams({ user: this.id })}`);
  }
}

/** An id nobody else has, of so many bytes. (crypto.randomUUID is not there over plain HTTP.) */
export function drawn(length) {
  const bytes = crypto.getRandomValues(new Uint8Array(length));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const fresh = () => `guest-${drawn(3)}`;
