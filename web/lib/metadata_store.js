/** What the host's model files say of themselves, asked for once each. No side effects on import. */

import { factsOf } from "./adapter_facts.js";

const ROUTE = "/view_metadata";

export class MetadataStore {
  /** `fetch(path)` gives a Response of the host. `onLoad` is called when an answer has come. */
  constructor(fetch) {
    this.fetch = fetch;
    this.onLoad = () => {};
    this.found = new Map(); // path -> facts, null for none, undefined while they are on their way
    this.round = 0;
  }

  /** The facts of a file below one of the host's model folders; null: it tells nothing, undefined: not yet known. */
  get(folder, file) {
    if (typeof file !== "string" || !file.endsWith(".safetensors")) return null;
    const path = `${ROUTE}/${encodeURIComponent(folder)}?filename=${encodeURIComponent(file)}`;
    if (!this.found.has(path)) {
      this.found.set(path, undefined);
      this.ask(path, this.round);
    }
    return this.found.get(path);
  }

  /** Ask again for every file: they may have changed. */
  forget() {
    this.found.clear();
    this.round += 1;
  }

  async ask(path, round) {
    const answer = await this.answer(path);
    if (round !== this.round) return;
    this.found.set(path, answer);
    this.onLoad();
  }

  /** The host answers 404 for a file without metadata, or with a header above 1 MB. */
  async answer(path) {
    try {
      const response = await this.fetch(path);
      const found = response.ok ? await response.json() : null;
      return typeof found === "object" && found !== null && !Array.isArray(found) ? factsOf(found) : null;
    } catch {
      return null; // no connection, or no JSON
    }
  }
}
