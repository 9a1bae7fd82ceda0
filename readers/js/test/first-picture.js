// Opens a store with `tec-zarr view` in a new browser and prints what the first picture cost, as JSON:
// node test/first-picture.js STORE PYTHON
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";

import { launch } from "./chromium.js";

/** Of the processes of pages, by number: bytes that they held at most, and processor seconds. */
function renderers() {
  const found = new Map();
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      if (!readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("--type=renderer")) continue;
      const [, most] = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
      const [user, system] = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1].split(" ").slice(11, 13);
      found.set(pid, { bytes: 1024 * most, seconds: (Number(user) + Number(system)) / 100 });
    } catch {
      // it has ended
    }
  }
  return found;
}

const [store, python] = process.argv.slice(2);
const server = spawn(python, ["-m", "tec_zarr.face.cli", "view", "--no-browser", store]);
const [line] = await once(server.stdout, "data");
const before = renderers();
const browser = await launch();
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
  await page.goto(String(line).split("\n")[0]);
  await page.waitForFunction(() => performance.getEntriesByName("drawn").length, null, { timeout: 120_000 });
  const seconds = await page.evaluate(() => performance.getEntriesByName("drawn")[0].startTime / 1000);
  const [, megabytes, requests] = /^([\d.]+) MB read in (\d+)/.exec(await page.textContent("#traffic"));
  const own = [...renderers()].filter(([pid]) => !before.has(pid)).map(([, process]) => process);
  const sum = (what) => own.reduce((all, process) => all + process[what], 0);
  const read = { megabytes_read: Number(megabytes), requests: Number(requests) };
  console.log(JSON.stringify({ seconds, ...read, renderer_megabytes: sum("bytes") / 1e6, processor_seconds: sum("seconds") }));
} finally {
  await browser.close();
  server.kill();
}
