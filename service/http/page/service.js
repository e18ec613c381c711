// The service's API: one call a request, with the key, retries and what it took.

const ATTEMPTS = 6;
const TIMEOUT_MS = 15_000;

/** What went wrong, in words. `status` 0: no answer. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export class Service {
  #key;
  #say;

  /** `say`: what to call with a sentence when a request has to wait. */
  constructor(key, say) {
    this.#key = key;
    this.#say = say;
  }

  get(path, query, signal) {
    return this.#call("GET", path, { query, signal });
  }

  post(path, body) {
    return this.#call("POST", path, { body });
  }

  delete(path) {
    return this.#call("DELETE", path, {});
  }

  /**
   * {data, ms, stages}: the answer; the round trip of the attempt that had it, as the browser
   * measured it; and the server's own milliseconds by stage, where it says them.
   * A 503 or no answer is tried again with the same body, so the same event_id: it counts once.
   */
  async #call(method, path, { query, body, signal }) {
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
      const why = answer ? (data?.detail ?? `status ${answer.status}`) : "no answer";
      const passes = !answer || answer.status === 503 || data === undefined;
      if (!passes || attempt === ATTEMPTS) throw new Problem(answer?.status ?? 0, why);
      const wait = Number(answer?.headers.get("Retry-After")) || 2 ** (attempt - 1) / 2;
      this.#say(`The service can't answer just now (${why}). Trying again in ${wait} s.`);
      await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
    }
  }
}

function stages(header) {
  const found = (header ?? "").matchAll(/([a-z]+);dur=([0-9.]+)/g);
  return Object.fromEntries([...found].map(([, stage, dur]) => [stage, Number(dur)]));
}
