// The page of `tec-zarr view` in Chromium: tests/test_view.py serves it and says what it has to show.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";

import { launch } from "./chromium.js";

const CASES = JSON.parse(readFileSync(process.env.TEC_VIEW_CASES, "utf8"));
let browser;

before(async () => (browser = await launch()));
after(() => browser?.close());

async function opened(address, viewport = { width: 800, height: 600 }) {
  const page = await browser.newPage({ viewport });
  const errors = [];
  page.on("pageerror", (error) => errors.push(error));
  await page.goto(address);
  await page.waitForFunction(() => performance.getEntriesByName("drawn").length);
  await page.waitForFunction(() => /^\d{4}-/.test(document.getElementById("date-text").textContent));
  return { page, errors };
}

/** The colours of some places of the picture. */
function colours(page) {
  return page.evaluate(() => {
    const canvas = document.getElementById("picture"), pen = canvas.getContext("2d");
    return Array.from({ length: 81 }, (_, i) => [...pen.getImageData(
      canvas.width * (0.3 + 0.05 * (i % 9)), canvas.height * (0.3 + 0.05 * Math.floor(i / 9)), 1, 1).data].join());
  });
}

/** Wait until the picture differs from one that was: a page draws when its chunks have come. */
async function changed(page, before, what) {
  for (let tries = 0; tries < 100; tries++) {
    if ((await colours(page)).some((colour, i) => colour !== before[i])) return;
    await page.waitForTimeout(50);
  }
  assert.fail(`not so after 5 s: ${what}`);
}

const different = (texts) => new Set(texts).size;

for (const { name, address, dates, bands, values, overviews } of CASES) {
  test(`${name}: pictures, dates and the values of a pixel`, async () => {
    const { page, errors } = await opened(address);
    assert.equal(await page.textContent("#wrong"), "");
    const first = await colours(page);
    assert.ok(different(first) > 20, "a picture has many colours");
    assert.ok(first.every((colour) => colour.endsWith(",255")), "all places are drawn");

    await page.click("#later");
    await page.waitForFunction((text) => document.getElementById("date-text").textContent === text, dates[1]);
    await changed(page, first, "another date looks different");

    await page.selectOption("#views", { label: bands.at(-1) });
    await page.locator("#picture").click({ position: { x: 420, y: 330 } });
    await page.waitForFunction(() => document.getElementById("legend").children.length);
    const [, x, y] = /pixel (\d+), (\d+)/.exec(await page.textContent("#pixel-place")).map(Number);
    const shown = await page.$$eval("#curve title", (titles) => titles.map((title) => title.textContent));
    const expected = values.map((date) => date.at(-1)[y][x]);
    assert.deepEqual(shown, expected.map((value, i) => `${dates[i]}: ${bands.at(-1)} ${value}`).filter((_, i) => expected[i]));
    assert.match(await page.textContent("#traffic"), /MB read in \d+ requests/);
    if (overviews) assert.match(await page.textContent("#size"), RegExp(`${overviews} overviews`));
    assert.deepEqual(errors, []);
    await page.close();
  });
}

test("an overview is read where it suffices", async () => {
  const page = await browser.newPage({ viewport: { width: 400, height: 160 } }), asked = [];
  page.on("request", (request) => asked.push(new URL(request.url()).pathname));
  await page.goto(CASES.find(({ overviews }) => overviews).address);
  await page.waitForFunction(() => performance.getEntriesByName("drawn").length);
  const chunks = asked.filter((path) => path.includes("/reflectance/c/"));
  assert.ok(chunks.length);
  assert.ok(chunks.every((path) => path.startsWith("/store/1/")), chunks.join());
  await page.close();
});

test("NDVI is drawn, and a phone shows all controls", async () => {
  const { page } = await opened(CASES[0].address, { width: 390, height: 844 });
  const before = await colours(page);
  await page.selectOption("#views", { label: "NDVI" });
  await changed(page, before, "NDVI looks different");
  for (const id of ["views", "date", "closer", "traffic"]) {
    const { x, y, width, height } = await page.locator(`#${id}`).boundingBox();
    assert.ok(x >= 0 && y >= 0 && x + width <= 390 && y + height <= 844, id);
  }
  await page.close();
});

test("what cannot be opened says why and asks for an address", async () => {
  const page = await browser.newPage();
  await page.goto(`${new URL(CASES[0].address).origin}/?url=${encodeURIComponent("nothing/")}`);
  await page.waitForSelector("#ask:not([hidden])");
  assert.match(await page.textContent("#wrong"), /no Zarr store here/);
  await page.close();
});
