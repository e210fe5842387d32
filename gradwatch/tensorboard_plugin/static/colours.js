// @ts-check

/**
 * Turns values into levels, and levels into colours. Level 0 means "not measured", the last level NaN or Inf.
 *
 * Sizes and shares have matplotlib's viridis (CC0). Its lightness rises evenly, so it reads alike in print and with any
 * kind of colour blindness. Ratios have ColorBrewer's RdBu: blue below 1, red above, both apart with any kind of colour
 * blindness. Their levels rise with the distance from 1, so that pooling by the highest level keeps what is furthest.
 */

/**
 * A colour scale, linear, logarithmic, or of ratios: logarithmic, with 1 in its middle.
 *
 * @typedef {{low: number, high: number, isLinear: boolean, isRatio?: boolean}} Scale
 */

const VIRIDIS =
  '44015448186a472d7b4240863b528b33638d2c728e26828e21918c1fa08828ae803fbc735ec96284d44baddc30d8e219fde725';

/** From low to high. On a dark page normal is dark: a map that is mostly normal must not glare. */
const DIVERGING = {
  light: '0530612166ac4393c392c5ded1e5f0f7f7f7fddbc7f4a582d6604db2182b67001f',
  dark: 'b5dcff7fbdf24a90d62f659c2b4767363636633f2fa0522cd9773cf5a870ffdcc2',
};

const PALE = 1.7; // above 1 keeps what is near the level pale, so that noise does not cover what stands out

export const SHADES = 254;
export const NOT_MEASURED = 0;
export const NOT_FINITE = SHADES + 1;

/**
 * Returns red, green and blue at `position`, between 0 and 1, of the scale of sizes and shares.
 *
 * @param {number} position
 */
export function shade(position) {
  return between(VIRIDIS, position);
}

/**
 * Returns red, green and blue at `position`, between 0 and 1, of the scale of ratios. 1 lies at 0.5.
 *
 * @param {number} position
 * @param {boolean} isDark
 */
export function diverging(position, isDark) {
  const side = 2 * position - 1;
  const bent = (1 + Math.sign(side) * Math.abs(side) ** PALE) / 2;
  return between(isDark ? DIVERGING.dark : DIVERGING.light, bent);
}

/**
 * @param {string} stops
 * @param {number} position
 */
function between(stops, position) {
  const last = stops.length / 6 - 1;
  const at = Math.min(Math.max(position, 0), 1) * last;
  const below = Math.min(Math.floor(at), last - 1);
  return [0, 2, 4].map((offset) => {
    const [from, to] = [below, below + 1].map((index) => byteAt(stops, 6 * index + offset));
    return Math.round(from + (to - from) * (at - below));
  });
}

/**
 * Returns red, green and blue of a colour such as #1f9e89.
 *
 * @param {string} hex
 */
export function rgb(hex) {
  return [1, 3, 5].map((offset) => byteAt(hex, offset));
}

/**
 * @param {string} hex
 * @param {number} offset
 */
function byteAt(hex, offset) {
  return parseInt(hex.slice(offset, offset + 2), 16);
}

/**
 * Returns one 32-bit pixel for each level, as ImageData holds pixels on the little-endian machines that browsers run on.
 *
 * @param {number[]} background red, green and blue of what was not measured.
 * @param {number[]} notFinite red, green and blue between the lines of the hatch.
 * @param {(position: number) => number[]} colourAt
 * @param {boolean} isRatio
 */
export function palette(background, notFinite, colourAt = shade, isRatio = false) {
  const positionOf = (/** @type {number} */ index) => (isRatio ? ratioPosition(index) : index / (SHADES - 1));
  const shades = Array.from({length: SHADES}, (_, index) => pixel(colourAt(positionOf(index))));
  return Uint32Array.from([pixel(background), ...shades, pixel(notFinite)]);
}

/**
 * Returns red, green and blue as one 32-bit pixel.
 *
 * @param {number[]} colour
 */
export function pixel([red, green, blue]) {
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

/**
 * Returns where on the scale of ratios a shade lies: even ones are below 1, odd ones above, and later ones further away.
 *
 * @param {number} index
 */
function ratioPosition(index) {
  const distance = (index >> 1) / (SHADES / 2 - 1) / 2;
  return index % 2 ? 0.5 + distance : 0.5 - distance;
}

/**
 * Returns one scale that holds the scales of several runs, or null where none of them has one.
 *
 * @param {([number, number] | null)[]} scales
 * @param {boolean} isLinear
 * @param {boolean} isRatio
 * @returns {Scale | null}
 */
export function commonScale(scales, isLinear, isRatio = false) {
  const known = scales.filter((scale) => scale !== null);
  if (!known.length) return null;
  const low = Math.min(...known.map(([from]) => from));
  const high = Math.max(...known.map(([, to]) => to));
  return {low, high, isLinear, isRatio};
}

/**
 * Returns a level for each value.
 *
 * @param {Float32Array} values
 * @param {Scale | null} scale
 */
export function levels(values, scale) {
  const {low, high, isLinear, isRatio} = scale ?? {low: 1, high: 1, isLinear: false, isRatio: false};
  if (isRatio) return leveled(values, ratioLevels(high));
  return leveled(values, isLinear ? linearLevels(low, high) : logarithmicLevels(low, high));
}

/**
 * @param {Float32Array} values
 * @param {(value: number) => number} levelOf a finite value.
 */
function leveled(values, levelOf) {
  const result = new Uint8Array(values.length);
  for (let index = 0; index < values.length; index++) {
    const value = values[index];
    if (value !== value) continue; // NaN: not measured
    result[index] = value === Infinity || value === -Infinity ? NOT_FINITE : levelOf(value);
  }
  return result;
}

/**
 * @param {number} low
 * @param {number} high
 */
function linearLevels(low, high) {
  return (/** @type {number} */ value) => levelAt(high > low ? (value - low) / (high - low) : 0.5);
}

/**
 * @param {number} low
 * @param {number} high
 */
function logarithmicLevels(low, high) {
  const [from, span] = [Math.log10(low), Math.log10(high) - Math.log10(low)];
  const flat = (/** @type {number} */ value) => (value < low ? 0 : 0.5); // all are alike, but for zeros
  return (/** @type {number} */ value) => levelAt(span > 0 ? (Math.log10(value) - from) / span : flat(value));
}

/** @param {number} high the ratio at the end of the scale. */
function ratioLevels(high) {
  const span = Math.log(high);
  const furthest = SHADES / 2 - 1;
  return (/** @type {number} */ value) => {
    const distance = Math.log(value) / span;
    return 1 + 2 * Math.round(Math.min(Math.abs(distance), 1) * furthest) + (distance > 0 ? 1 : 0);
  };
}

/**
 * Returns the level of a place on the scale. Below its lower end, and for the logarithm of a negative number, it is 1.
 *
 * @param {number} at
 */
function levelAt(at) {
  return 1 + Math.round((SHADES - 1) * (at > 1 ? 1 : at > 0 ? at : 0));
}
