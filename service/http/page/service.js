// The service's API: one call a request, with the key, retries and what it took.

const ATTEMPTS = 6;
const TIMEOUT_MS = 15_000;

/** What went wrong, in words, and what to do about it. `status` 0: no answer. `final`: it would be
 * refused again. */
export class Problem extends Error {
  constructor(status, detail, kept) {
    super(said(status, detail));
    this.status = status;
    this.final = status >= 400 && status < 500 && status !== 401;
    if (this.final) this.hint = "Nothing was stored.";
    else if (kept) this.hint = "Your click is kept: it is sent again when you say so.";
  }
}

function said(status, detail) {
  if (status === 0) return "The service does not answer";
  if (status === 401) return "This service answers only with a key that it knows";
  return status < 500 ? `That was refused: ${detail}` : "The service can't answer just now";
}

/** An id as a part of a path; a dot alone would be taken for a folder. */
export const segment = (id) => encodeURIComponent(id).replaceAll(".", "%2E");

/** {name: value or values} as the pairs of a query. */
export const pairs = (given) => Object.entries(given).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));

export class Service {
  #key;
  #wait;

  /** `wait(said, about)`: what to call when a request has to wait. */
  constructor(key, wait) {
    this.#key = key;
    this.#wait = wait;
  }

  /** `query`: pairs of a name and a value. */
  get(path, query, signal) {
    return this.#call("GET", path, { query, signal });
  }

  /** `kept`: it stores what somebody did. */
  post(path, body, { signal, kept = false } = {}) {
    return this.#call("POST", path, { body, signal, kept });
  }

  put(path, body) {
    return this.#call("PUT", path, { body });
  }

  delete(path) {
    return this.#call("DELETE", path, {});
  }

  /**
   * {data, ms, stages}: the answer; the round trip of the attempt that had it, as the browser
   * measured it; and the server's own milliseconds by stage, where it says them.
   * A 503 or no answer is tried again with the same body, so the same event_id: it counts once.
   */
  async #call(method, path, { query, body, signal, kept }) {
    const url = new URL(path, document.baseURI);
    for (const [name, value] of query ?? []) url.searchParams.append(name, value);
    for (let attempt = 1; ; attempt++) {
      const key = this.#key.value;
      const started = performance.now();
      let answer;
      let data;
      try {
        answer = await fetch(url, {
          method,
          headers: {
            ...(body && { "Content-Type": "application/json" }),
            ...(key && { "X-API-Key": key }),
          },
          body: body && JSON.stringify(body),
          cache: "no-store",
          signal: AbortSignal.any([AbortSignal.timeout(TIMEOUT_MS), ...(signal ? [signal] : [])]),
        });
        data = await answer.json();
      } catch (error) {
        if (signal?.aborted) throw error;
      }
      const took = performance.now() - started;
      if (answer?.ok && data !== undefined) {
        return { data, ms: took, stages: stages(answer.headers.get("Server-Timing")) };
      }
      if (answer?.status === 401 && (await this.#key.ask(key))) {
        attempt = 0;
        continue;
      }
      const status = answer?.status ?? 0;
      const problem = new Problem(status, data?.detail ?? "", kept);
      const passes = !answer || status === 503 || data === undefined;
      if (!passes || attempt === ATTEMPTS) throw problem;
      const wait = Number(answer?.headers.get("Retry-After")) || 2 ** (attempt - 1) / 2;
      this.#wait(problem.message, `${kept ? "Your click is kept. " : ""}Trying again in ${wait} s.`);
      await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
    }
  }
}

function stages(header) {
  const found = (header ?? "").matchAll(/([a-z]+);dur=([0-9.]+)/g);
  return Object.fromEntries([...found].map(([, stage, dur]) => [stage, Number(dur)]));
}
