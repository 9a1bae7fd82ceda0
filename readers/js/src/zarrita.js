// The codec for zarrita: `tec` of Zarr format 3, and the compressor or filter `tec` of format 2.
import { TecError, decode, describe } from "./core.js";

/** Decodes a frame if it is a chunk of this array. */
async function chunkOf(bytes, meta) {
  const found = await describe(bytes);
  if (found.shape.join() !== meta.shape.join() || found.dtype !== meta.dataType) {
    throw new TecError("argument", `TEC frame of ${found.dtype} (${found.shape}) where the array has chunks of ` +
      `${meta.dataType} (${meta.shape}): the chunk belongs to another array`);
  }
  return decode(bytes);
}

function refuse() {
  throw new TecError("argument", "@tec-zarr/codec reads only: write with tec_zarr in Python");
}

/** Format 3: a frame becomes an array. */
class ArrayCodec {
  kind = "array_to_bytes";
  encode = refuse;

  constructor(meta) {
    this.meta = meta;
  }

  static fromConfig(_configuration, meta) {
    return new ArrayCodec(meta);
  }

  async decode(bytes) {
    const { data, shape } = await chunkOf(bytes, this.meta);
    const stride = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
    return { data, shape, stride };
  }
}

/** Format 2: a frame becomes the bytes of the array, in its byte order and memory order. */
class BytesCodec {
  kind = "bytes_to_bytes";
  encode = refuse;

  constructor(meta) {
    this.meta = meta;
  }

  static fromConfig(_configuration, meta) {
    return new BytesCodec(meta);
  }

  async decode(bytes) {
    const { data, shape, bigEndian, columnMajor } = await chunkOf(bytes, this.meta);
    const out = new Uint8Array((columnMajor ? turned(data, shape) : data).buffer);
    if (bigEndian) swap(out, data.BYTES_PER_ELEMENT);
    return out;
  }
}

/** Copies an array of a shape so that its first axis changes fastest. */
function turned(data, shape) {
  const out = new data.constructor(data.length);
  const strides = shape.map((_, axis) => shape.slice(0, axis).reduce((a, b) => a * b, 1));
  const index = shape.map(() => 0);
  for (let i = 0, at = 0; i < data.length; i++) {
    out[at] = data[i];
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      at += strides[axis];
      if (++index[axis] < shape[axis]) break;
      at -= strides[axis] * shape[axis];
      index[axis] = 0;
    }
  }
  return out;
}

function swap(bytes, size) {
  for (let i = 0; i < bytes.length; i += size) bytes.subarray(i, i + size).reverse();
}

/** Adds TEC to zarrita's registry of codecs. Nothing is loaded until a chunk is decoded. */
export function register(registry) {
  registry.set("tec", () => ArrayCodec);
  registry.set("numcodecs.tec", () => BytesCodec);
}
