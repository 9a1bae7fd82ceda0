// Workers that decode. A request goes to the one with the least to do.
import { compiled } from "../js/src/core.js";

const MOST = 4;

export class Pool {
  #workers = [];
  #waiting = new Map();
  #next = 0;
  #module = compiled(); // once for all workers, while the store is opened

  constructor() {
    this.size = Math.max(1, Math.min(MOST, navigator.hardwareConcurrency ?? 2));
    for (let i = 0; i < this.size; i++) {
      const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
      worker.onmessage = ({ data: { id, answer, wrong } }) => {
        const { resolve, reject, entry } = this.#waiting.get(id);
        this.#waiting.delete(id);
        entry.busy -= 1;
        if (wrong) reject(new Error(wrong));
        else resolve(answer);
      };
      worker.onerror = () => {
        for (const { reject } of this.#waiting.values()) reject(new Error("The decoder could not be started."));
      };
      this.#workers.push({ worker, busy: 0 });
    }
    const start = (module) => this.#workers.forEach(({ worker }) => worker.postMessage({ module }));
    this.#module.then(start, () => {}); // `ask` says what is wrong
  }

  async ask(asked) {
    await this.#module;
    const entry = this.#workers.reduce((a, b) => (b.busy < a.busy ? b : a));
    const id = this.#next++;
    entry.busy += 1;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, entry });
      entry.worker.postMessage({ id, asked });
    });
  }
}
