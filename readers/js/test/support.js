// The cases of tests/reader_cases.py, and a server for them.
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

export const FOLDER = process.env.TEC_READER_CASES;
if (!FOLDER) throw new Error("TEC_READER_CASES names no folder: make readers-test writes one");

export const CASES = JSON.parse(readFileSync(join(FOLDER, "cases.json"), "utf8"));
export const bytesOf = (name) => new Uint8Array(readFileSync(join(FOLDER, name)));
export const asBytes = (data) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

const TYPES = { ".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm" };

/** Serves folders by the first part of the path; `asked` lists what was asked for. */
export async function serve(folders) {
  const asked = [];
  const server = createServer(async (request, response) => {
    const [, first, ...rest] = normalize(decodeURIComponent(new URL(request.url, "http://x").pathname)).split("/");
    asked.push(request.url);
    const bytes = folders[first] && (await readFile(join(folders[first], ...rest)).catch(() => null));
    if (!bytes) return response.writeHead(404).end();
    const range = /^bytes=(\d*)-(\d*)$/.exec(request.headers.range ?? "");
    const from = !range ? 0 : range[1] ? Number(range[1]) : bytes.length - Number(range[2]);
    const to = range?.[1] && range[2] ? Math.min(Number(range[2]) + 1, bytes.length) : bytes.length;
    response.writeHead(range ? 206 : 200, {
      "content-type": TYPES[extname(request.url)] ?? "application/octet-stream",
      "content-length": to - from,
      ...(range && { "content-range": `bytes ${from}-${to - 1}/${bytes.length}` }),
    });
    response.end(request.method === "HEAD" ? undefined : bytes.subarray(from, to));
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  return { url: `http://127.0.0.1:${server.address().port}`, asked, close: () => server.close() };
}
