// Loads the decoder and the weights, each once, and calls them.
import { WEIGHTS } from "../files/weights.js";

const DTYPES = ["uint16", "int16", "float32", "float64"];
const ARRAYS = { uint16: Uint16Array, int16: Int16Array, float32: Float32Array, float64: Float64Array };
const AXES = [[0, 1, 2, 3], [1, 2, 3], [0, 2, 3], [2, 3]]; // of (time, band, y, x), those of the array
const REASONS = {
  [-1]: "memory", [-2]: "damaged", [-4]: "argument", [-5]: "changed", [-6]: "newer", [-7]: "limit",
  [-8]: "model",
};
const MOST_BYTES = 2 ** 31; // of samples: WebAssembly's memory has 2^32

/** What is wrong with a frame, or why it cannot be read here. */
export class TecError extends Error {
  /**
   * @param {string} reason
   * @param {string} message
   */
  constructor(reason, message) {
    super(message);
    this.name = "TecError";
    this.reason = reason;
  }
}

// A module of one function that returns a vector: valid where there is SIMD.
const SIMD = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
]);

async function bytesOf(url) {
  if (url.protocol === "file:") {
    const node = "node:fs/promises"; // a name that bundlers for browsers do not follow
    return (await import(/* @vite-ignore */ node)).readFile(url);
  }
  const response = await fetch(url);
  if (!response.ok) throw new TecError("files", `${url} cannot be read: status ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Returns a function that makes its result once; after a failure it tries again. */
function once(make) {
  let made;
  return () => (made ??= make().catch((error) => {
    made = undefined;
    throw error;
  }));
}

/** The compiled decoder. */
export const compiled = once(async () => {
  const url = WebAssembly.validate(SIMD)
    ? new URL("../files/tec.wasm", import.meta.url)
    : new URL("../files/tec-plain.wasm", import.meta.url);
  return WebAssembly.compile(await bytesOf(url));
});

let given = null; // compiled elsewhere

const loadCore = once(async () => {
  const { exports } = await WebAssembly.instantiate(given ?? (await compiled()), {});
  exports._initialize();
  return exports;
});

const loadModel = Object.fromEntries(Object.entries(WEIGHTS).map(([prefix, { file, sha256 }]) => [
  prefix,
  once(async () => {
    const core = await loadCore();
    const bytes = await bytesOf(new URL(`../files/${file}`, import.meta.url));
    // crypto.subtle is missing from pages that came over plain HTTP.
    const found = globalThis.crypto?.subtle && hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
    const model = found && found !== sha256 ? 0 : hold(core, [bytes], (at) => core.open_model(at, bytes.length));
    if (!model) throw new TecError("files", `${file} is damaged: install @tec-zarr/codec again`);
    return model >>> 0;
  }),
]));

/** Makes a worker ready for frames of the newest weights, with a decoder that the page compiled. */
export async function prepare(module) {
  given = module;
  await loadModel[Object.keys(WEIGHTS)[0]]();
}

function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function allocate(core, length) {
  const at = length < MOST_BYTES ? core.allocate(length) >>> 0 : 0;
  if (!at) throw new TecError("memory", `no memory for ${length} bytes`);
  return at;
}

/** Calls a function with the places of some bytes in the memory of the core. */
function hold(core, many, work) {
  const places = [];
  try {
    for (const bytes of many) {
      places.push(allocate(core, bytes.length));
      new Uint8Array(core.memory.buffer).set(bytes, places.at(-1));
    }
    return work(...places);
  } finally {
    places.forEach((place) => core.release(place));
  }
}

function check(core, status) {
  if (!status) return;
  const memory = new Uint8Array(core.memory.buffer), at = core.wrong() >>> 0;
  const text = new TextDecoder().decode(memory.slice(at, memory.indexOf(0, at)));
  throw new TecError(REASONS[status] ?? "damaged", `TEC frame: ${text}`);
}

function headerOf(core, frame) {
  check(core, hold(core, [frame], (at) => core.describe(at, frame.length)));
  const at = core.header() >>> 0, memory = core.memory.buffer;
  const [axes, dtype, bigEndian, columnMajor, , sections, ...shape] = new Int32Array(memory, at, 10);
  return {
    shape: AXES[axes].map((axis) => shape[axis]),
    shape4: shape,
    dtype: DTYPES[dtype],
    bigEndian: !!bigEndian,
    columnMajor: !!columnMajor,
    weights: hex(new Uint8Array(memory, at + 40, 8)),
    needsModel: sections > 0,
  };
}

/** Reads the header of a frame. index.d.ts says what it holds. */
export async function describe(frame) {
  return headerOf(await loadCore(), frame);
}

/** Decodes a frame, all dates or those that are named; data are (time, band, y, x). */
export async function decode(frame, { dates } = {}) {
  const core = await loadCore();
  const header = headerOf(core, frame);
  let model = 0;
  if (header.needsModel) {
    const load = loadModel[header.weights];
    if (!load) {
      throw new TecError("model", `TEC frame: it needs the weights ${header.weights}, this reader has ` +
        `${Object.keys(WEIGHTS).join(", ")}: read it with tec_zarr in Python, or a newer @tec-zarr/codec`);
    }
    model = await load();
  }
  const Samples = ARRAYS[header.dtype];
  if (dates && !dates.every((date) => Number.isInteger(date) && date >= 0 && date < header.shape4[0])) {
    throw new TecError("argument", `TEC frame: it has ${header.shape4[0]} dates, not ${dates}`);
  }
  const shape4 = dates ? [dates.length, ...header.shape4.slice(1)] : header.shape4;
  const size = shape4.reduce((a, b) => a * b, Samples.BYTES_PER_ELEMENT);
  const wanted = new Uint8Array(BigInt64Array.from(dates ?? [], BigInt).buffer);
  const data = hold(core, [frame, wanted], (at, datesAt) => {
    const samples = allocate(core, size);
    try {
      check(core, core.decode(at, frame.length, model, dates ? datesAt : 0, dates?.length ?? 0, samples, size));
      return new Samples(core.memory.buffer.slice(samples, samples + size));
    } finally {
      core.release(samples);
    }
  });
  return { ...header, shape4, data };
}
