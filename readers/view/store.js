// Finds the images of a store, and reads what a picture needs of them.
import * as zarr from "zarrita";

import { datesOf } from "./dates.js";

const SPACE = [["y", "lat", "latitude", "northing"], ["x", "lon", "longitude", "easting"]];
const TIME = ["time", "t", "date"], BAND = ["band", "bands", "wavelength"];

/** A chunk that is still encoded: workers decode it. */
class Frame {
  constructor(bytes) {
    this.bytes = bytes;
  }
}

const passing = {
  fromConfig: (_configuration, { shape }) => ({
    kind: "array_to_bytes",
    decode: (bytes) => ({ data: new Frame(bytes), shape, stride: [] }),
  }),
};
zarr.registry.set("tec", () => passing).set("numcodecs.tec", () => passing);

/** What was read so far. */
export const traffic = { bytes: 0, requests: 0 };

async function counted(request) {
  const response = await fetch(request);
  traffic.requests += 1;
  if (request.headers.get("range") && response.status === 200) {
    throw new Error("The server does not send parts of files (HTTP Range), which stores with shards need.");
  }
  if (!response.body || request.method === "HEAD") return response;
  const bytes = await response.arrayBuffer();
  traffic.bytes += bytes.byteLength;
  const { status, statusText, headers } = response;
  return new Response(bytes, { status, statusText, headers });
}

/** Opens a store and returns its images, those with most pixels first. */
export async function openStore(url) {
  // Of another server, a part that is counted from the end needs a request of its own (CORS).
  const useSuffixRequest = new URL(url).origin === location.origin, known = new Map();
  const remote = new zarr.FetchStore(url, { fetch: counted, useSuffixRequest });
  const store = {
    get: async (key, options) => known.get(key) ?? remote.get(key, options),
    getRange: (key, range, options) => remote.getRange(key, range, options),
  };
  const { nodes, factors } = await metadataOf(store, known);
  const images = imagesOf(nodes, factors).map((image) => new Image(store, nodes, image));
  if (!images.length) throw new Error("The store has no array with the dimensions y and x.");
  return images.sort((a, b) => b.bands.length - a.bands.length || b.height * b.width - a.height * a.width);
}

/**
 * The metadata of all arrays, by path, in one form for both formats, and the factors of overviews by group. What
 * zarrita will ask for is `known` then.
 */
async function metadataOf(store, known) {
  const keep = (key, value) => known.set(key, new TextEncoder().encode(JSON.stringify(value)));
  const json = async (key) => {
    const bytes = await store.get(key);
    return bytes && JSON.parse(new TextDecoder().decode(bytes));
  };
  const root = await json("/zarr.json");
  if (root?.node_type === "array") return { nodes: { "": ofFormat3(root) }, factors: {} };
  if (root?.consolidated_metadata) {
    const all = Object.entries(root.consolidated_metadata.metadata);
    const arrays = all.filter(([, node]) => node.node_type === "array");
    for (const [path, node] of arrays) keep(`/${path}/zarr.json`, node);
    return {
      nodes: Object.fromEntries(arrays.map(([path, node]) => [path, ofFormat3(node)])),
      factors: factorsOf([["", root], ...all].map(([path, node]) => [path, node.attributes])),
    };
  }
  const { metadata } = (root ? null : await json("/.zmetadata")) ?? {};
  if (metadata) {
    for (const [key, value] of Object.entries(metadata)) keep(`/${key}`, value);
    const paths = Object.keys(metadata).filter((key) => key.endsWith("/.zarray")).map((key) => key.slice(0, -8));
    const groups = Object.entries(metadata).filter(([key]) => key.endsWith(".zattrs"));
    return {
      nodes: Object.fromEntries(paths.map((path) =>
        [path, ofFormat2(metadata[`${path}/.zarray`], metadata[`${path}/.zattrs`] ?? {})])),
      factors: factorsOf(groups.map(([key, attributes]) => [key.slice(0, -8), attributes])),
    };
  }
  const array = root ? null : await json("/.zarray");
  if (array) return { nodes: { "": ofFormat2(array, (await json("/.zattrs")) ?? {}) }, factors: {} };
  throw new Error(root ? "The store has no consolidated metadata: zarr.consolidate_metadata writes it."
    : "There is no Zarr store here, or it has no consolidated metadata.");
}

function ofFormat3({ shape, dimension_names, chunk_grid, codecs, fill_value, attributes }) {
  const shards = codecs.find(({ name }) => name === "sharding_indexed")?.configuration;
  const tec = (shards?.codecs ?? codecs).find(({ name }) => name === "tec");
  return {
    format: 3, shape, attributes: attributes ?? {}, fill: fill_value, tec: tec && (tec.configuration ?? {}),
    dimensions: dimension_names ?? [], chunks: (shards ?? chunk_grid.configuration).chunk_shape,
  };
}

function ofFormat2({ shape, chunks, compressor, filters, fill_value, order }, attributes) {
  const tec = [compressor, ...(filters ?? [])].find((codec) => codec?.id === "tec");
  if (tec && order === "F") throw new Error("Arrays of format 2 in Fortran order are not shown.");
  return { format: 2, shape, chunks, attributes, fill: fill_value, tec, dimensions: attributes._ARRAY_DIMENSIONS ?? [] };
}

/** By group, how many pixels along a side one of its pixels covers: what `multiscales` of the group above says. */
function factorsOf(groups) {
  const factors = {};
  for (const [path, attributes] of groups) {
    const layout = attributes?.multiscales?.layout;
    for (const { asset, transform } of Array.isArray(layout) ? layout : []) {
      const [down, across] = transform?.scale ?? [];
      if (down > 0 && down === across) factors[[path, asset].filter(Boolean).join("/")] = down;
    }
  }
  return factors;
}

/** Where time, band, y and x are among the axes of an array, -1 for what it lacks; or null. */
function axesOf({ shape, dimensions }) {
  const find = (names) => dimensions.findIndex((name) => names.includes(String(name).toLowerCase()));
  const [y, x] = SPACE.map(find);
  const rank = shape.length;
  if (y >= 0 && x >= 0) return { time: find(TIME), band: find(BAND), y, x };
  if (dimensions.length || rank < 2 || rank > 4) return null;
  return { time: rank === 4 ? 0 : -1, band: rank > 2 ? rank - 3 : -1, y: rank - 2, x: rank - 1 };
}

/**
 * Groups arrays to images. Arrays without a band axis that have the same shape and lie in one group
 * are the bands of one image; arrays of one name that differ in height and width alone are its
 * overviews. Their factors are those that the store says, else what the widths are to each other.
 */
function imagesOf(nodes, factors) {
  const levels = new Map();
  for (const [path, node] of Object.entries(nodes)) {
    const axes = axesOf(node);
    if (!axes || Math.min(node.shape[axes.y], node.shape[axes.x]) < 2) continue;
    const [group, name] = [path.slice(0, Math.max(path.lastIndexOf("/"), 0)), path.slice(path.lastIndexOf("/") + 1)];
    const alone = axes.band >= 0 || !(node.tec || /^b\d/i.test(name));
    const key = JSON.stringify([group, node.shape, alone ? name : ""]);
    if (!levels.has(key)) levels.set(key, { name: alone ? name : "bands", factor: factors[group], parts: [] });
    levels.get(key).parts.push({ path, name, node, axes });
  }
  const images = new Map();
  for (const { name, factor, parts } of levels.values()) {
    const [{ node, axes }] = parts;
    const others = node.shape.filter((_, axis) => axis !== axes.y && axis !== axes.x);
    const key = JSON.stringify([name, others, parts.map((part) => part.name)]);
    if (!images.has(key)) images.set(key, { name, levels: [] });
    images.get(key).levels.push({ parts, factor, height: node.shape[axes.y], width: node.shape[axes.x] });
  }
  for (const { levels } of images.values()) {
    levels.sort((a, b) => b.width - a.width);
    const said = levels.every(({ factor }) => factor), [{ width, factor: first }] = levels;
    for (const level of levels) level.factor = said ? level.factor / first : width / level.width;
  }
  return [...images.values()];
}

/** An image of some dates and bands, with its overviews. */
class Image {
  constructor(store, nodes, { name, levels }) {
    const [{ parts, height, width }] = levels, [{ node, axes }] = parts;
    Object.assign(this, { name, levels, height, width, store, nodes });
    this.dates = axes.time < 0 ? 1 : node.shape[axes.time];
    this.bands = parts.flatMap(bandsOf);
    let first = 0;
    for (const level of levels) {
      first = 0;
      for (const part of level.parts) {
        part.first = first;
        part.count = part.axes.band < 0 ? 1 : part.node.shape[part.axes.band];
        first += part.count;
      }
      const { chunks } = level.parts[0].node;
      level.tile = { height: chunks[axes.y], width: chunks[axes.x], dates: axes.time < 0 ? 1 : chunks[axes.time] };
    }
    const { attributes, tec, fill } = node;
    this.scale = Number(attributes.scale_factor ?? 1);
    this.offset = Number(attributes.add_offset ?? 0);
    const nodata = [tec?.nodata ?? [], fill, attributes._FillValue].flat();
    this.nodata = new Set(nodata.filter((value) => typeof value === "number"));
  }

  /** The dates as text, or numbers where the store does not say. */
  async labels() {
    const { dimensions } = this.levels[0].parts[0].node, { time } = this.levels[0].parts[0].axes;
    const found = time >= 0 && (await this.coordinate(dimensions[time] ?? "time"));
    const dates = found && datesOf(found.values, found.attributes);
    return dates ?? Array.from({ length: this.dates }, (_, i) => `date ${i + 1}`);
  }

  /** Values and attributes of a one-dimensional array beside the image, or in a group above it. */
  async coordinate(name) {
    const steps = this.levels[0].parts[0].path.split("/").slice(0, -1);
    for (let n = steps.length; n >= 0; n--) {
      const path = [...steps.slice(0, n), name].join("/"), node = this.nodes[path];
      if (node?.shape.length !== 1) continue;
      try {
        return { values: (await zarr.get(await this.#open(path))).data, attributes: node.attributes };
      } catch {
        return null; // of a dtype or codec that zarrita does not know
      }
    }
    return null;
  }

  #opened = new Map();

  #open(path) {
    if (!this.#opened.has(path)) {
      const open = this.nodes[path].format === 3 ? zarr.open.v3 : zarr.open.v2;
      this.#opened.set(path, open(zarr.root(this.store).resolve(path), { kind: "array" }));
    }
    return this.#opened.get(path);
  }

  #frames = new Map(); // kept: they are small

  /** A chunk of a part of a level: its frame, or null where the store has none. */
  frame(part, tile, date, row, column) {
    const { axes } = part;
    const at = part.node.shape.map((_, axis) =>
      axis === axes.time ? Math.floor(date / tile.dates) : axis === axes.y ? row : axis === axes.x ? column : 0);
    const key = `${part.path}/${at}`;
    if (!this.#frames.has(key)) {
      const reading = this.#open(part.path).then((array) => array.getChunk(at));
      this.#frames.set(key, reading.then(({ data }) => (data instanceof Frame ? data.bytes : null)));
      reading.catch(() => this.#frames.delete(key));
    }
    return this.#frames.get(key);
  }

  /** Samples (bands, height, width) of a window of an array that is not TEC. */
  async window(part, date, [top, bottom], [left, right]) {
    const { axes, node } = part;
    const selection = node.shape.map((_, axis) =>
      axis === axes.time ? zarr.slice(date, date + 1) : axis === axes.y ? zarr.slice(top, bottom)
        : axis === axes.x ? zarr.slice(left, right) : null);
    const { data, stride } = await zarr.get(await this.#open(part.path), selection);
    const [height, width] = [bottom - top, right - left], out = new Float64Array(part.count * height * width);
    let at = 0;
    for (let band = 0; band < part.count; band++) {
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          out[at++] = Number(data[(axes.band < 0 ? 0 : band * stride[axes.band]) + y * stride[axes.y] + x * stride[axes.x]]);
        }
      }
    }
    return { data: out, height, width };
  }
}

function bandsOf({ name, node, axes }) {
  if (axes.band < 0) return [name];
  const count = node.shape[axes.band], known = node.tec?.bands;
  return known?.length === count ? known : Array.from({ length: count }, (_, i) => `band ${i + 1}`);
}
