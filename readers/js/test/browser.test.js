// Stores over HTTP, read with zarrita in Chromium: in a page and in a worker.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

import { launch } from "./chromium.js";
import { bytesOf, CASES, FOLDER, serve } from "./support.js";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const expected = CASES.stores.map(({ pixels }) => bytesOf(pixels));

test("stores of both formats are read in Chromium, in a page and in a worker", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "tec-browser-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const work = `
    import { windowsOf } from "${HERE}windows.js";
    const all = async (url, stores) => (await windowsOf(url, stores)).map((bytes) => Array.from(bytes));`;
  await build({
    stdin: { contents: `${work} window.all = all;`, resolveDir: HERE, sourcefile: "page.js" },
    outfile: join(folder, "page.js"), bundle: true, format: "esm",
  });
  await build({
    stdin: {
      contents: `${work} onmessage = async ({ data }) => postMessage(await all(...data));`,
      resolveDir: HERE, sourcefile: "worker.js",
    },
    outfile: join(folder, "worker.js"), bundle: true, format: "esm",
  });
  writeFileSync(join(folder, "index.html"), "<script type=module src=page.js></script>");
  const site = await serve({ cases: FOLDER, page: folder, files: join(HERE, "../files") });
  t.after(() => site.close());
  const browser = await launch();
  t.after(() => browser.close());
  const page = await browser.newPage();
  await page.goto(`${site.url}/page/index.html`);
  await page.waitForFunction("window.all");
  assert.ok(!site.asked.some((path) => path.startsWith("/files")), "nothing is loaded before a chunk is");
  const asked = [`${site.url}/cases`, CASES.stores];
  const inPage = await page.evaluate((given) => window.all(...given), asked);
  const inWorker = await page.evaluate((given) => new Promise((resolve, reject) => {
    const worker = new Worker("worker.js", { type: "module" });
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = reject;
    worker.postMessage(given);
  }), asked);
  for (const found of [inPage, inWorker]) {
    found.forEach((bytes, i) => assert.deepEqual(Buffer.from(bytes), Buffer.from(expected[i]), CASES.stores[i].store));
  }
  const loaded = site.asked.filter((path) => path.startsWith("/files"));
  assert.equal(loaded.length, 4, `decoder and weights once in the page and once in the worker: ${loaded}`);
});
