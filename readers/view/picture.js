// The picture: what of the image the window shows, drawn from tiles that are loaded as needed.
import { limitsOf, paint } from "./colours.js";

const CACHE = 192e6; // bytes of samples
const START = 16;    // tiles that the first picture may need: more take too long
const MOST = 1024;   // tiles that a window may need

export class Picture {
  #canvas;
  #pool;
  #tiles = new Map(); // samples by place, the oldest first
  #held = 0;
  #loading = 0;
  #drawn = 0;
  #settled = true;
  #complete = () => {};

  /** Resolves when all that the window shows was drawn for the first time. */
  first = new Promise((resolve) => (this.#complete = resolve));

  /** `changed` is called when something was loaded or drawn, `failed` with an error. */
  constructor(canvas, pool, { changed, failed }) {
    Object.assign(this, { changed, failed });
    this.#canvas = canvas;
    this.#pool = pool;
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** Shows an image: all of it if few tiles suffice, else its middle. */
  open(image) {
    this.image = image;
    this.date = 0;
    this.#tiles.clear();
    this.#held = 0;
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    this.smallest = Math.min(width / image.width, height / image.height, 1) * 0.8;
    this.centre = [image.width / 2, image.height / 2];
    this.zoom = Math.min(width / image.width, height / image.height, 8) * 0.98;
    while (this.zoom < 2 && this.#visible().length > START) this.zoom *= 1.25;
    this.smallest = Math.min(this.smallest, this.zoom);
  }

  show(view) {
    this.view = view;
    this.fit();
  }

  /** Chooses black and white anew, from what the window shows. */
  fit() {
    this.limits = null;
    this.draw();
  }

  move(dx, dy) {
    this.centre = [this.centre[0] - dx / this.zoom, this.centre[1] - dy / this.zoom];
    this.draw();
  }

  /** Zooms so that the place under (x, y) of the window stays. */
  scale(factor, x = this.#canvas.clientWidth / 2, y = this.#canvas.clientHeight / 2) {
    const before = this.place(x, y);
    this.zoom = Math.min(Math.max(this.zoom * factor, this.smallest), 32);
    const after = this.place(x, y);
    this.centre = this.centre.map((value, i) => value + before[i] - after[i]);
    this.draw();
  }

  /** The place in the image, in pixels of it, that is under (x, y) of the window. */
  place(x, y) {
    const { clientWidth, clientHeight } = this.#canvas;
    return [this.centre[0] + (x - clientWidth / 2) / this.zoom, this.centre[1] + (y - clientHeight / 2) / this.zoom];
  }

  /** The level that has a pixel for each of the screen's, or the finest. */
  #level() {
    const { levels } = this.image;
    const fine = levels.filter(({ factor }) => factor * this.zoom * 0.75 <= 1);
    return fine.at(-1) ?? levels[0];
  }

  /** The tiles that the window needs, from its middle outwards. */
  #visible() {
    const level = this.#level(), { tile, factor } = level; // pixels of the image in one of the level
    const step = 2 ** Math.max(0, Math.floor(Math.log2(1 / (this.zoom * factor))));
    const { clientWidth, clientHeight } = this.#canvas;
    const from = this.place(0, 0), to = this.place(clientWidth, clientHeight);
    const range = (axis, length, size) => [
      Math.max(0, Math.floor(from[axis] / factor / size)),
      Math.min(Math.ceil(length / size), Math.ceil(to[axis] / factor / size)),
    ];
    const [left, right] = range(0, level.width, tile.width), [top, bottom] = range(1, level.height, tile.height);
    const tiles = [];
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++) {
        const dx = (column + 0.5) * tile.width * factor - this.centre[0];
        const dy = (row + 0.5) * tile.height * factor - this.centre[1];
        tiles.push({ level, factor, step, row, column, far: dx * dx + dy * dy });
      }
    }
    return tiles.sort((a, b) => a.far - b.far);
  }

  draw() {
    if (this.image && this.view && !this.#drawn) this.#drawn = requestAnimationFrame(() => this.#drawNow());
  }

  #drawNow() {
    this.#drawn = 0;
    const ratio = window.devicePixelRatio, canvas = this.#canvas, pen = canvas.getContext("2d");
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(side * ratio));
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const wanted = this.#visible();
    const exact = wanted.map((tile) => this.#find(tile, tile.step));
    if (!this.limits && exact.some((tile) => tile?.values)) {
      this.limits = limitsOf(exact.filter((tile) => tile?.values).map((tile) => this.#bands(tile)), this.view, this.image.nodata);
      this.limits.first = !exact.every(Boolean); // of some tiles only: chosen again when all are there
    } else if (this.limits?.first && exact.every(Boolean)) {
      this.limits = limitsOf(exact.filter((tile) => tile.values).map((tile) => this.#bands(tile)), this.view, this.image.nodata);
    }
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    wanted.forEach((tile, i) => this.#put(pen, tile, exact[i] ?? this.#coarser(tile), ratio));
    if (this.mark) this.#putMark(pen, ratio);
    this.missing = exact.filter((tile) => !tile).length;
    if (!this.missing && !this.#settled) {
      performance.mark("drawn");
      this.#complete();
    }
    this.#settled = !this.missing;
    this.#load(wanted.slice(0, MOST));
    this.changed();
  }

  #key({ level, row, column }) {
    return `${this.image.levels.indexOf(level)}/${this.date}/${row}/${column}`;
  }

  #find(tile, step) {
    const key = `${this.#key(tile)}/${step}`, found = this.#tiles.get(key);
    if (found) this.#tiles.delete(key), this.#tiles.set(key, found);
    return found;
  }

  /** The same place as it was loaded for another zoom. */
  #coarser(tile) {
    for (let step = 1; step <= 64; step *= 2) {
      const found = this.#tiles.get(`${this.#key(tile)}/${step}`);
      if (found) return found;
    }
    return null;
  }

  #bands({ values }) {
    return this.view.bands.map((band) => values[band]);
  }

  #put(pen, { level, factor, row, column }, found, ratio) {
    if (!found?.values || !this.limits) return;
    if (found.view !== this.view || found.limits !== this.limits) {
      const pixels = new ImageData(found.width, found.height);
      paint(this.#bands(found), this.view, this.limits, this.image, pixels.data);
      found.bitmap ??= new OffscreenCanvas(found.width, found.height);
      found.bitmap.getContext("2d").putImageData(pixels, 0, 0);
      Object.assign(found, { view: this.view, limits: this.limits });
    }
    const { tile } = level, zoom = this.zoom * ratio * factor;
    const [left, top] = this.place(0, 0).map((value) => value / factor);
    const wide = Math.min(tile.width, level.width - column * tile.width), high = Math.min(tile.height, level.height - row * tile.height);
    const edges = [column * tile.width - left, row * tile.height - top].map((value) => Math.round(value * zoom));
    const ends = [column * tile.width + wide - left, row * tile.height + high - top].map((value) => Math.round(value * zoom));
    pen.imageSmoothingEnabled = zoom < 1;
    pen.drawImage(found.bitmap, 0, 0, found.width * (wide / tile.width), found.height * (high / tile.height),
      edges[0], edges[1], ends[0] - edges[0], ends[1] - edges[1]);
  }

  /** Rings the pixel whose values are shown: dark on light, so that it is seen on any ground. */
  #putMark(pen, ratio) {
    const [left, top] = this.place(0, 0);
    const [x, y] = [this.mark[0] + 0.5 - left, this.mark[1] + 0.5 - top].map((value) => value * this.zoom * ratio);
    for (const [colour, wide] of [["#fff", 4], ["#111", 1.6]]) {
      pen.beginPath();
      pen.arc(x, y, Math.max(7, this.zoom * 0.8) * ratio, 0, 2 * Math.PI);
      Object.assign(pen, { strokeStyle: colour, lineWidth: wide * ratio });
      pen.stroke();
    }
  }

  /** Loads the nearest tiles that are missing; each that arrives draws, which loads the next. */
  #load(wanted) {
    for (const tile of wanted) {
      if (this.#loading >= 2 * this.#pool.size + 2) return;
      const key = `${this.#key(tile)}/${tile.step}`;
      if (this.#tiles.has(key) || this.asked.has(key)) continue;
      this.asked.add(key);
      this.#loading += 1;
      const { image } = this;
      this.#read(tile, this.date)
        .then((found) => image === this.image && this.#keep(key, found), (error) => {
          if (image === this.image) this.#keep(key, { size: 0 });
          this.failed(error);
        })
        .finally(() => {
          this.asked.delete(key);
          this.#loading -= 1;
          this.draw();
        });
    }
  }

  asked = new Set();

  #keep(key, found) {
    this.#tiles.set(key, found);
    this.#held += found.size;
    for (const [old, { size }] of this.#tiles) {
      if (this.#held <= CACHE) break;
      this.#tiles.delete(old);
      this.#held -= size;
    }
  }

  /** Values of all bands of a tile; without values where the store has nothing. */
  async #read({ level, step, row, column }, date) {
    const { tile, parts } = level, out = { values: [], size: 0 };
    for (const part of parts) {
      const found = part.node.tec
        ? await this.#decoded(part, tile, date, row, column, step)
        : await this.image.window(part, date, [row, row + 1].map((n) => Math.min(n * tile.height, level.height)),
          [column, column + 1].map((n) => Math.min(n * tile.width, level.width)));
      if (!found) return { size: 0 };
      const { data, width, height } = found, size = width * height;
      for (let band = 0; band < part.count; band++) out.values.push(data.subarray(band * size, (band + 1) * size));
      Object.assign(out, { width, height, size: out.size + data.byteLength });
    }
    return out;
  }

  async #decoded(part, tile, date, row, column, step) {
    const frame = await this.image.frame(part, tile, date, row, column);
    return frame && this.#pool.ask({ frame, date: date % tile.dates, step });
  }

  /** Values of all dates and bands at a pixel of the image: [date][band], null for nodata. */
  async series(x, y) {
    const { image } = this, [{ tile, parts }] = image.levels;
    const row = Math.floor(y / tile.height), column = Math.floor(x / tile.width);
    const out = Array.from({ length: image.dates }, () => Array(image.bands.length).fill(null));
    const put = (date, part, values) => values.forEach((value, band) => {
      if (date < image.dates && !image.nodata.has(value) && value === value) out[date][part.first + band] = value;
    });
    const reading = [];
    for (const part of parts) {
      for (let date = 0; date < image.dates; date += part.node.tec ? tile.dates : 1) {
        reading.push(part.node.tec
          ? image.frame(part, tile, date, row, column)
            .then((frame) => frame && this.#pool.ask({ frame, y: y % tile.height, x: x % tile.width }))
            .then((found) => found?.values.forEach((values, i) => put(date + i, part, values)))
          : image.window(part, date, [y, y + 1], [x, x + 1]).then(({ data }) => put(date, part, [...data])));
      }
    }
    await Promise.all(reading);
    return out;
  }
}
