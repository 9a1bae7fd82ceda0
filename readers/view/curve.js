// Values of a pixel over the dates, as a curve.
import { ndvi } from "./colours.js";

const COLOURS = { colour: ["#d1495b", "#2e8b57", "#3d6cb9"], ndvi: ["#2e8b57"], grey: ["#8a6d3b"] };
const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [320, 170, 46, 24, 10];

function add(parent, name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return parent.appendChild(element);
}

/** The lines of a view: name, colour and values, null where there is none. */
export function linesOf(series, view, { bands, scale, offset }) {
  const value = (date, band) => (date[band] === null ? null : date[band] * scale + offset);
  if (view.kind === "ndvi") {
    const values = series.map((date) => {
      const [infrared, red] = view.bands.map((band) => value(date, band));
      const index = infrared === null || red === null ? NaN : ndvi(infrared, red);
      return Number.isNaN(index) ? null : index;
    });
    return [{ name: "NDVI", colour: COLOURS.ndvi[0], values }];
  }
  return view.bands.map((band, i) =>
    ({ name: bands[band], colour: COLOURS[view.kind][i], values: series.map((date) => value(date, band)) }));
}

const text = (value) => (Number.isInteger(value) || Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(Math.abs(value) >= 10 ? 1 : 3));

/** Draws lines over dates; the current date is marked. Dates lie as far apart as they are, if known. */
export function drawCurve(svg, lines, labels, current) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const known = lines.flatMap(({ values }) => values).filter((value) => value !== null);
  if (!known.length) return void add(svg, "text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "no data here");
  const [low, high] = [Math.min(...known), Math.max(...known)], spread = high - low || Math.abs(high) || 1;
  const [least, most] = [low - 0.08 * spread, high + 0.08 * spread];
  const times = labels.map((label) => Date.parse(label.replace(" ", "T")));
  const places = times.some(Number.isNaN) ? labels.map((_, i) => i) : times;
  const [first, last] = [places[0], places.at(-1)];
  const x = (i) => LEFT + (WIDTH - LEFT - 12) * (last > first ? (places[i] - first) / (last - first) : 0.5);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - least) / (most - least));
  for (const value of [low, (low + high) / 2, high]) {
    add(svg, "line", { x1: LEFT, x2: WIDTH - 8, y1: y(value), y2: y(value), class: "grid" });
    add(svg, "text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, text(value));
  }
  add(svg, "text", { x: LEFT, y: HEIGHT - 6 }, labels[0]);
  if (labels.length > 1) add(svg, "text", { x: WIDTH - 8, y: HEIGHT - 6, "text-anchor": "end" }, labels.at(-1));
  add(svg, "line", { x1: x(current), x2: x(current), y1: TOP, y2: HEIGHT - BOTTOM, class: "now" });
  for (const { name, colour, values } of lines) {
    let path = "";
    values.forEach((value, i) => {
      if (value === null) return;
      path += `${path && values[i - 1] !== null ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    });
    add(svg, "path", { d: path, stroke: colour, fill: "none", "stroke-width": 2 });
    values.forEach((value, i) => {
      if (value === null) return;
      const dot = add(svg, "circle", { cx: x(i), cy: y(value), r: i === current ? 4.5 : 3, fill: colour });
      add(dot, "title", {}, `${labels[i]}: ${name} ${text(value)}`);
    });
  }
}

/** Fills a list with the names of the lines and their values at a date. */
export function drawLegend(list, lines, current) {
  list.replaceChildren(...lines.map(({ name, colour, values }) => {
    const item = document.createElement("li"), mark = document.createElement("i");
    mark.style.background = colour;
    const value = values[current];
    item.append(mark, `${name}  ${value === null ? "no data" : text(value)}`);
    return item;
  }));
}
