/** Where an axis gets its ticks, and how numbers read. */

/** Round numbers from `from` to `to`, about `wanted` of them; whole ones. */
export function stepTicks(from, to, wanted) {
  const rough = Math.max(1, (to - from) / Math.max(1, wanted));
  const power = 10 ** Math.floor(Math.log10(rough));
  const apart = Math.max(1, [1, 2, 5, 10].find((factor) => factor * power >= rough) * power);
  const ticks = [];
  for (let tick = Math.ceil(from / apart) * apart; tick <= to; tick += apart) ticks.push(tick);
  return ticks;
}

/** What an infinite number in a log stands for: one number a layer and step cannot tell the three apart. */
export const NOT_FINITE = 'NaN, Inf or overflow';

/** Three digits at most: 0.00123, 12.3, 4.56e-9; what is no finite number by name. */
export function figure(value) {
  if (value === null || value === undefined) return 'not a finite number';
  if (value !== value) return 'not measured';
  if (Math.abs(value) === Infinity) return NOT_FINITE;
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 1e4 || size < 1e-3)
    return value
      .toExponential(2)
      .replace(/\.?0+e/, 'e')
      .replace('e+', 'e');
  return String(Number(value.toPrecision(3)));
}

/** 12,345. */
export function wholeNumber(value) {
  return Math.round(value).toLocaleString('en-GB');
}
