/** Samples of a chunk. */
export type Samples = Uint16Array | Int16Array | Float32Array | Float64Array;

/** The header of a frame, which is one chunk of an array. */
export interface Header {
  /** Of the array that was encoded. */
  shape: number[];
  /** (time, band, y, x); an axis that the array lacks has length 1. */
  shape4: number[];
  dtype: "uint16" | "int16" | "float32" | "float64";
  /** How the array lay in memory when it was encoded. */
  bigEndian: boolean;
  columnMajor: boolean;
  /** The first 16 hex digits of the SHA-256 of the model's weights. */
  weights: string;
  /** Whether samples are left to the model: a frame can be of the bound layer alone. */
  needsModel: boolean;
}

export interface Decoded extends Header {
  /** Samples (time, band, y, x) in the order of `shape4`, in the byte order of the machine. */
  data: Samples;
}

export type Reason =
  | "damaged" // the bytes are not what an encoder writes
  | "changed" // bytes, or what they decode to, do not match their checksum
  | "newer" // the frame needs a newer decoder
  | "limit" // the frame asks for more than a decoder takes
  | "model" // this reader does not have the model of the frame, or its weights
  | "memory"
  | "argument"
  | "files"; // the decoder or the weights of this package cannot be read

/** What is wrong with a frame, or why it cannot be read here. No pixels are returned. */
export class TecError extends Error {
  readonly reason: Reason;
}

/** Reads the header of a frame. Throws a TecError. */
export function describe(frame: Uint8Array): Promise<Header>;

/**
 * Decodes a frame. Throws a TecError.
 * @param options.dates Dates to decode, counted from 0, in any order; default all. `shape4` and
 *   `data` have these dates, `shape` stays that of the whole chunk.
 */
export function decode(frame: Uint8Array, options?: { dates?: readonly number[] }): Promise<Decoded>;

/**
 * Adds TEC to zarrita's registry of codecs: `tec` of Zarr format 3, also in shards, and the
 * compressor or filter `tec` of format 2. Decoder and weights are loaded with the first chunk.
 */
export function register(registry: { set(name: string, codec: () => any): unknown }): void;
