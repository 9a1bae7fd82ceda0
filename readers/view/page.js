// The page of `tec-zarr view`: controls, and what happens when they are used.
import { drawCurve, drawLegend, linesOf } from "./curve.js";
import { Picture } from "./picture.js";
import { Pool } from "./pool.js";
import { openStore, traffic } from "./store.js";
import { viewsOf } from "./colours.js";

const $ = (id) => document.getElementById(id);
const canvas = $("picture");
const picture = new Picture(canvas, new Pool(), { changed: sayMore, failed: fail });
let labels = [], views = [], pixel = null;

function fail(error) {
  $("wrong").textContent = error.cause?.message ?? error.message;
  $("wrong").hidden = false;
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 0)} MB`;

function sayMore() {
  const left = picture.missing ? ` · ${picture.missing} parts to come` : "";
  $("traffic").textContent = `${megabytes(traffic.bytes)} read in ${traffic.requests} requests${left}`;
}

// ---- images, views, dates

async function choose(image) {
  views = viewsOf(image.bands);
  $("views").replaceChildren(...views.map(({ name }, i) => new Option(name, i)));
  $("size").textContent = `${image.width} × ${image.height} · ${image.bands.length} bands` +
    (image.levels.length > 1 ? ` · ${image.levels.length - 1} overviews` : "");
  $("dates").hidden = image.dates < 2;
  $("date").max = image.dates - 1;
  $("date").value = 0;
  closePixel();
  picture.open(image);
  picture.show(views[0]);
  labels = Array.from({ length: image.dates }, (_, i) => `date ${i + 1}`);
  setDate(0);
  await picture.first; // the codec of a coordinate is larger than all else
  labels = await image.labels();
  if (picture.image !== image) return;
  setDate(picture.date);
}

function setDate(date) {
  picture.date = Math.min(Math.max(date, 0), picture.image.dates - 1);
  $("date").value = picture.date;
  $("date-text").textContent = labels[picture.date];
  picture.draw();
  drawPixel();
}

// ---- the pixel and its curve

async function openPixel(x, y) {
  const { image } = picture;
  if (x < 0 || y < 0 || x >= image.width || y >= image.height) return;
  const here = (pixel = { x, y, series: null });
  picture.mark = [x, y];
  picture.draw();
  $("pixel").hidden = false;
  $("pixel-place").textContent = `pixel ${x}, ${y}: reading …`;
  $("curve").replaceChildren();
  $("legend").replaceChildren();
  try {
    const [series, east, north] = await Promise.all([
      picture.series(x, y), image.coordinate("x"), image.coordinate("y"),
    ]);
    if (pixel !== here) return;
    here.series = series;
    const place = east && north ? ` · x ${Number(east.values[x])}, y ${Number(north.values[y])}` : "";
    $("pixel-place").textContent = `pixel ${x}, ${y}${place}`;
    drawPixel();
    sayMore();
  } catch (error) {
    fail(error);
  }
}

function drawPixel() {
  if (!pixel?.series) return;
  const lines = linesOf(pixel.series, picture.view, picture.image);
  drawCurve($("curve"), lines, labels, picture.date);
  drawLegend($("legend"), lines, picture.date);
}

function closePixel() {
  pixel = picture.mark = null;
  $("pixel").hidden = true;
  picture.draw();
}

// ---- pointers: one drags, two zoom, one that stays asks for the pixel

const pointers = new Map();
let travelled = 0;

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  if (!pointers.size) travelled = 0;
  pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
});

canvas.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before || !picture.image) return;
  const now = [event.offsetX, event.offsetY], other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
  travelled += Math.hypot(dx, dy);
  canvas.classList.toggle("moving", travelled > 4);
  if (other) {
    const reach = ([x, y]) => Math.hypot(x - other[0], y - other[1]);
    picture.scale(reach(now) / Math.max(reach(before), 1), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    picture.move(dx / 2, dy / 2);
  } else if (travelled > 4) {
    picture.move(dx, dy);
  }
  pointers.set(event.pointerId, now);
});

function lift(event) {
  if (!pointers.delete(event.pointerId)) return;
  canvas.classList.remove("moving");
  if (event.type === "pointerup" && travelled <= 4 && !pointers.size && picture.image) {
    openPixel(...picture.place(event.offsetX, event.offsetY).map(Math.floor));
  }
}
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  if (picture.image) picture.scale(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
}, { passive: false });

// ---- controls

$("closer").onclick = () => picture.scale(1.5);
$("farther").onclick = () => picture.scale(1 / 1.5);
$("contrast").onclick = () => picture.fit();
$("earlier").onclick = () => setDate(picture.date - 1);
$("later").onclick = () => setDate(picture.date + 1);
$("date").oninput = () => setDate(Number($("date").value));
$("close").onclick = closePixel;
$("views").onchange = () => {
  picture.show(views[$("views").value]);
  drawPixel();
};

async function start() {
  const asked = new URLSearchParams(location.search).get("url");
  const url = new URL(asked ?? document.body.dataset.store, location.href).href;
  try {
    const images = await openStore(url);
    document.title = `${decodeURIComponent(url).replace(/\/$/, "").split("/").at(-1)} · tec-zarr view`;
    $("images").replaceChildren(...images.map(({ name }, i) => new Option(name || "array", i)));
    $("images-label").hidden = images.length < 2;
    $("images").onchange = () => choose(images[$("images").value]).catch(fail);
    await choose(images[0]);
  } catch (error) {
    $("ask").hidden = false;
    $("url").value = asked ?? "";
    fail(error instanceof TypeError ? new Error(`${url} cannot be read: no such server, or it does not allow other pages (CORS).`) : error);
  }
}
start();
