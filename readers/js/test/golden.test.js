// Frames under Node: pixels of every golden stream, parts of them, and damaged ones.
import assert from "node:assert/strict";
import { before, test } from "node:test";

import * as withSimd from "../src/core.js";
import { WEIGHTS } from "../files/weights.js";
import { asBytes, bytesOf, CASES } from "./support.js";

const readable = CASES.golden.filter((item) => item.weights in WEIGHTS);
let plain;

before(async () => {
  const { validate } = WebAssembly;
  WebAssembly.validate = () => false; // as in a browser without SIMD
  plain = await import("../src/core.js?plain");
  await plain.describe(bytesOf(readable[0].frame));
  WebAssembly.validate = validate;
});

test("there are golden streams", () => assert.ok(readable.length > 20));

for (const item of readable) {
  test(`${item.frame} has its pixels, with SIMD and without`, async () => {
    for (const { decode } of [withSimd, plain]) {
      const found = await decode(bytesOf(item.frame));
      assert.equal(found.dtype, item.dtype);
      assert.deepEqual(found.shape, item.shape);
      assert.deepEqual(Buffer.from(asBytes(found.data)), Buffer.from(bytesOf(item.pixels)));
    }
  });
}

test("dates are decoded alone, in any order", async () => {
  const item = readable.find(({ shape, frame }) => shape.length === 4 && shape[0] > 2 && frame.startsWith("tec-s2"));
  const frame = bytesOf(item.frame);
  const all = await withSimd.decode(frame);
  const some = await withSimd.decode(frame, { dates: [2, 0] });
  const size = all.data.length / item.shape[0];
  assert.deepEqual(some.shape4, [2, ...item.shape.slice(1)]);
  assert.deepEqual(some.data.slice(0, size), all.data.slice(2 * size, 3 * size));
  assert.deepEqual(some.data.slice(size), all.data.slice(0, size));
  await assert.rejects(withSimd.decode(frame, { dates: [item.shape[0]] }), { reason: "argument" });
});

test("a frame of other weights says which it needs", async () => {
  const frame = bytesOf(readable.find(({ frame }) => frame.includes("one-date")).frame);
  const other = CASES.golden.find((item) => !(item.weights in WEIGHTS));
  if (other) {
    await assert.rejects(withSimd.decode(bytesOf(other.frame)), { reason: "model", message: RegExp(other.weights) });
  }
  await assert.rejects(withSimd.decode(frame.subarray(0, frame.length - 1)), { reason: "damaged" });
});

test("damaged bytes never become other pixels", async () => {
  const item = readable.find(({ frame }) => frame.includes("one-date"));
  const frame = bytesOf(item.frame);
  for (let at = 0; at < frame.length; at += Math.ceil(frame.length / 300)) {
    const damaged = frame.slice();
    damaged[at] ^= 0x55;
    await assert.rejects(withSimd.decode(damaged), withSimd.TecError, `byte ${at}`);
  }
  await assert.rejects(withSimd.decode(new Uint8Array()), { reason: "damaged" });
});
