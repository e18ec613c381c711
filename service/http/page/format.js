// Numbers and times as people read them.

const number = (digits) =>
  new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const whole = number(0);
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const UNITS = [
  ["year", 31_557_600],
  ["month", 2_629_800],
  ["week", 604_800],
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
  ["second", 1],
];
const absolute = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const count = (value) => whole.format(value);
export const several = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
export const decimal = (value, digits = 2) => number(digits).format(value);
export const date = (time) => absolute.format(time);

/** With three digits that say something. */
export const short = (value) => three.format(value);
export const percent = (share) => `${short(100 * share)} %`;

export function ms(value) {
  if (value >= 1000) return `${short(value / 1000)} s`;
  return `${number(value && value < 10 ? 1 : 0).format(value)} ms`;
}

export function bytes(value) {
  if (value < 1000) return several(value, "byte");
  const power = Math.min(3, Math.floor(Math.log10(value) / 3));
  return `${number(1).format(value / 1000 ** power)} ${["kB", "MB", "GB"][power - 1]}`;
}

/** A length of time in its largest unit. */
export function span(seconds) {
  const [unit, length] = UNITS.find(([, one]) => seconds >= one) ?? UNITS.at(-1);
  const value = Math.floor(seconds / length);
  return several(value, unit);
}

export function ago(time, now = Date.now()) {
  const seconds = (now - time) / 1000;
  return seconds < 1 ? "just now" : `${span(seconds)} ago`;
}
