// Stores over HTTP, read with zarrita under Node.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import * as zarr from "zarrita";

import { TecError } from "../index.js";
import { bytesOf, CASES, FOLDER, serve } from "./support.js";
import { windowsOf } from "./windows.js";

const expected = CASES.stores.map(({ pixels }) => bytesOf(pixels));
let server;

before(async () => (server = await serve({ cases: FOLDER })));
after(() => server.close());

test("stores of both formats are read in Node", async () => {
  const found = await windowsOf(`${server.url}/cases`, CASES.stores);
  found.forEach((bytes, i) => assert.deepEqual(Buffer.from(bytes), Buffer.from(expected[i]), CASES.stores[i].store));
});

test("a chunk of another array is refused", async () => {
  const root = zarr.root(new Map([
    ["/zarr.json", new TextEncoder().encode(JSON.stringify({
      zarr_format: 3, node_type: "array", shape: [8, 8], data_type: "uint16", fill_value: 0,
      chunk_grid: { name: "regular", configuration: { chunk_shape: [8, 8] } },
      chunk_key_encoding: { name: "default" }, codecs: [{ name: "tec", configuration: {} }], attributes: {},
    }))],
    ["/c/0/0", bytesOf(CASES.golden.find(({ frame }) => frame.includes("one-date")).frame)],
  ]));
  const array = await zarr.open(root, { kind: "array" });
  await assert.rejects(zarr.get(array), ({ cause }) => {
    assert.ok(cause instanceof TecError);
    assert.match(cause.message, /another array/);
    return true;
  });
});
