// Dates of a time coordinate, as CF describes them.
const MILLISECONDS = { day: 864e5, hour: 36e5, minute: 6e4, second: 1e3, millisecond: 1, microsecond: 1e-3, nanosecond: 1e-6 };

/** Returns texts such as 2023-06-01 of numbers "days since 2018-01-01", or null. */
export function datesOf(values, { units = "" }) {
  const [, unit, since] = /^\s*([a-z]+?)s?\s+since\s+(.+?)\s*$/i.exec(units) ?? [];
  const length = MILLISECONDS[unit?.toLowerCase()];
  const start = since && Date.parse(`${since.replace(" ", "T").replace(/(T[\d:.]+)?(Z|[+-]\d\d:?\d\d)?$/, "")}T00:00:00Z`);
  const time = since && /[T ](\d\d):?(\d\d)?:?([\d.]+)?/.exec(since);
  if (!length || Number.isNaN(start)) return null;
  const shift = time ? 36e5 * time[1] + 6e4 * (time[2] ?? 0) + 1e3 * (time[3] ?? 0) : 0;
  const texts = Array.from(values, (value) => new Date(start + shift + Number(value) * length).toISOString());
  const whole = new Set(texts.map((text) => text.slice(0, 10))).size === texts.length;
  return texts.map((text) => (whole ? text.slice(0, 10) : text.slice(0, 16).replace("T", " ")));
}
