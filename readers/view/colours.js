// What a picture shows of the bands, and the colours of it.

const RAMP = [[94, 60, 30], [166, 123, 76], [224, 205, 156], [246, 240, 205], [190, 214, 128], [94, 163, 74], [22, 101, 42], [4, 56, 24]];
const NDVI = [-0.2, 0.9]; // ends of the ramp

const NAMED = [
  ["Natural colour", ["B04", "B03", "B02"]],
  ["Vegetation (B08 B04 B03)", ["B08", "B04", "B03"]],
  ["Moisture (B12 B8A B04)", ["B12", "B8A", "B04"]],
];

/** The views that these bands allow: name, and the numbers of the bands that are needed. */
export function viewsOf(bands) {
  const names = bands.map((name) => name.toUpperCase().replace(/^B(\d)$/, "B0$1"));
  const number = (name) => names.indexOf(name);
  const views = [];
  for (const [name, wanted] of NAMED) {
    const found = wanted.map(number);
    if (!found.includes(-1)) views.push({ name, bands: found, kind: "colour" });
  }
  const [red, infrared] = [number("B04"), number("B08")];
  if (red >= 0 && infrared >= 0) views.push({ name: "NDVI", bands: [infrared, red], kind: "ndvi" });
  bands.forEach((name, band) => views.push({ name, bands: [band], kind: "grey" }));
  return views;
}

export const ndvi = (infrared, red) => (infrared + red > 0 ? (infrared - red) / (infrared + red) : NaN);

/** Limits of black and white for each band: the 1st and 98th percentile of some tiles. */
export function limitsOf(tiles, { bands, kind }, nodata) {
  if (kind === "ndvi") return [];
  return bands.map((_, i) => {
    const seen = [];
    for (const tile of tiles) {
      const values = tile[i];
      for (let at = 0, hop = Math.max(1, values.length >> 12); at < values.length; at += hop) {
        if (!nodata.has(values[at]) && values[at] === values[at]) seen.push(values[at]);
      }
    }
    seen.sort((a, b) => a - b);
    const [low, high] = [0.01, 0.98].map((part) => seen[Math.floor(part * (seen.length - 1))] ?? 0);
    return [low, high > low ? high : low + 1];
  });
}

/** Fills pixels (RGBA) from the values of the view's bands. */
export function paint(values, { kind }, limits, { nodata, scale, offset }, pixels) {
  const count = values[0].length;
  if (kind === "ndvi") {
    const [infrared, red] = values, steps = RAMP.length - 1;
    for (let i = 0, at = 0; i < count; i++, at += 4) {
      const value = ndvi(infrared[i] * scale + offset, red[i] * scale + offset);
      if (nodata.has(infrared[i]) || nodata.has(red[i]) || value !== value) continue;
      const place = Math.min(Math.max((value - NDVI[0]) / (NDVI[1] - NDVI[0]), 0), 0.9999) * steps;
      const low = RAMP[Math.floor(place)], high = RAMP[Math.floor(place) + 1], part = place % 1;
      for (let c = 0; c < 3; c++) pixels[at + c] = low[c] + part * (high[c] - low[c]);
      pixels[at + 3] = 255;
    }
    return;
  }
  const channels = kind === "grey" ? [0, 0, 0] : [0, 1, 2];
  const [only] = nodata, single = nodata.size === 1;
  channels.forEach((band, c) => {
    const [low, high] = limits[band], factor = 255 / (high - low), from = values[band];
    for (let i = 0, at = c; i < count; i++, at += 4) pixels[at] = (from[i] - low) * factor;
  });
  for (let i = 0, at = 3; i < count; i++, at += 4) {
    const value = values[0][i];
    pixels[at] = value !== value || (single ? value === only : nodata.has(value)) ? 0 : 255;
  }
}
