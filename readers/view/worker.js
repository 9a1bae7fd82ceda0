// Decodes frames beside the page: a date of a chunk as a picture needs it, or one pixel of all dates.
import { decode, prepare } from "../js/src/core.js";

/** Keeps every `step`-th sample along y and x of (bands, height, width). */
function thinned(data, [bands, height, width], step) {
  if (step === 1) return { data, height, width };
  const rows = Math.ceil(height / step), columns = Math.ceil(width / step), half = step >> 1;
  const out = new data.constructor(bands * rows * columns);
  let at = 0;
  for (let band = 0; band < bands; band++) {
    for (let row = 0; row < rows; row++) {
      const line = (band * height + Math.min(row * step + half, height - 1)) * width;
      for (let column = 0; column < columns; column++) {
        out[at++] = data[line + Math.min(column * step + half, width - 1)];
      }
    }
  }
  return { data: out, height: rows, width: columns };
}

async function picture({ frame, date, step }) {
  const { data, shape4 } = await decode(frame, { dates: [date] });
  return thinned(data, shape4.slice(1), step);
}

async function pixel({ frame, y, x }) {
  const { data, shape4: [dates, bands, height, width] } = await decode(frame);
  const values = Array.from({ length: dates }, (_, date) =>
    Array.from({ length: bands }, (_, band) => data[((date * bands + band) * height + y) * width + x]));
  return { values };
}

onmessage = async ({ data: { id, asked, module } }) => {
  if (module) return void prepare(module).catch(() => {}); // the frame that needs it says what is wrong
  try {
    const answer = await (asked.step ? picture(asked) : pixel(asked));
    postMessage({ id, answer }, answer.data ? [answer.data.buffer] : []);
  } catch (error) {
    postMessage({ id, wrong: error.message });
  }
};
