// What TypeScript has to accept: compiled by types.test.js, never run.
import * as zarr from "zarrita";

import { decode, describe, register, TecError, type Samples } from "../index.js";

register(zarr.registry);
const header = await describe(new Uint8Array(4));
const { data, shape4 } = await decode(new Uint8Array(4), { dates: [0] });
const samples: Samples = data;
const first: number = samples[shape4[0]] + header.shape[0];
try {
  throw new TypeError(String(first));
} catch (error) {
  if (error instanceof TecError && error.reason === "damaged") throw error;
}
