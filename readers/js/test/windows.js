// Reads the window of each store with zarrita: in Node, in a page and in a worker.
import * as zarr from "zarrita";

import { register } from "../index.js";

/** Returns the samples of each store's window as bytes, in C order. */
export async function windowsOf(url, stores) {
  register(zarr.registry);
  const out = [];
  for (const { store, window } of stores) {
    const array = await zarr.open(zarr.root(new zarr.FetchStore(`${url}/${store}`)).resolve("dn"), { kind: "array" });
    const { data, shape, stride } = await zarr.get(array, window.map(([from, to]) => zarr.slice(from, to)));
    const flat = new data.constructor(data.length);
    const index = shape.map(() => 0);
    for (let i = 0; i < flat.length; i++) {
      flat[i] = data[index.reduce((at, n, axis) => at + n * stride[axis], 0)];
      for (let axis = shape.length - 1; axis >= 0 && ++index[axis] === shape[axis]; axis--) index[axis] = 0;
    }
    out.push(new Uint8Array(flat.buffer));
  }
  return out;
}
