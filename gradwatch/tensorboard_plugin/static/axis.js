// @ts-check

/** Places the ticks of an axis, and writes numbers for people. */

/** @import {Statistic} from './api.js' */

const WHOLE = new Intl.NumberFormat('en-GB'); // kept, because making one takes longer than its use

/**
 * Returns about `wanted` round, whole numbers from `from` to `to`.
 *
 * @param {number} from
 * @param {number} to
 * @param {number} wanted
 */
export function stepTicks(from, to, wanted) {
  const rough = Math.max(1, (to - from) / Math.max(1, wanted));
  const power = 10 ** Math.floor(Math.log10(rough));
  const factor = [1, 2, 5].find((each) => each * power >= rough) ?? 10;
  const apart = Math.max(1, factor * power);
  const ticks = [];
  for (let tick = Math.ceil(from / apart) * apart; tick <= to; tick += apart) ticks.push(tick);
  return ticks;
}

/** What an infinite number in a log can mean. A log holds one number per layer and step, so the three look the same. */
export const NOT_FINITE = 'NaN, Inf or overflow';

/**
 * Writes a number with at most three digits, such as 0.00123, 12.3 or 4.56e-9, or says why it is none.
 *
 * @param {number | null | undefined} value null stands for a number that JSON cannot hold.
 */
export function figure(value) {
  if (value === null || value === undefined) return 'not a finite number';
  if (Number.isNaN(value)) return 'not measured';
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

/**
 * Writes a number of things: 1 layer, 2 layers.
 *
 * @param {number} count
 * @param {string} thing in the singular.
 */
export function counted(count, thing) {
  return `${wholeNumber(count)} ${thing}${count === 1 ? '' : 's'}`;
}

/**
 * Writes a whole number as in 12,345.
 *
 * @param {number} value
 */
export function wholeNumber(value) {
  return WHOLE.format(Math.round(value));
}

/**
 * Writes a stretch of steps, both included: step 12, or steps 12 to 57.
 *
 * @param {number} from
 * @param {number} last
 */
export function stepsText(from, last = from) {
  return from >= last ? `step ${wholeNumber(from)}` : `steps ${wholeNumber(from)} to ${wholeNumber(last)}`;
}

/**
 * Writes a value with its unit: 48 × its level, 12 %.
 *
 * @param {Statistic | null} statistic
 * @param {number} value
 */
export function withUnit(statistic, value) {
  if (!Number.isFinite(value)) return figure(value);
  if (statistic?.isRatio) return `${figure(value)} × its level`;
  return statistic?.isShare ? `${figure(100 * value)} %` : figure(value);
}
