// @ts-check

/**
 * Turns values into levels, and levels into colours. Level 0 means "not measured", the last level NaN or Inf.
 *
 * The scale is matplotlib's viridis (CC0). Its lightness rises evenly, so it reads alike in print and with any kind of
 * colour blindness.
 */

/**
 * A colour scale, linear or logarithmic.
 *
 * @typedef {{low: number, high: number, isLinear: boolean}} Scale
 */

const VIRIDIS =
  '44015448186a472d7b4240863b528b33638d2c728e26828e21918c1fa08828ae803fbc735ec96284d44baddc30d8e219fde725';

export const SHADES = 254;
export const NOT_MEASURED = 0;
export const NOT_FINITE = SHADES + 1;

/** Red is furthest from viridis with each kind of colour blindness; the tests compute it. */
export const NOT_FINITE_COLOUR = [255, 0, 0];

/**
 * Returns red, green and blue at `position`, between 0 and 1, of the scale.
 *
 * @param {number} position
 */
export function shade(position) {
  const last = VIRIDIS.length / 6 - 1;
  const at = Math.min(Math.max(position, 0), 1) * last;
  const below = Math.min(Math.floor(at), last - 1);
  return [0, 2, 4].map((offset) => {
    const [from, to] = [below, below + 1].map((index) => byteAt(VIRIDIS, 6 * index + offset));
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
 */
export function palette(background) {
  const pixel = (/** @type {number[]} */ [red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const shades = Array.from({length: SHADES}, (_, index) => pixel(shade(index / (SHADES - 1))));
  return Uint32Array.from([pixel(background), ...shades, pixel(NOT_FINITE_COLOUR)]);
}

/**
 * Returns one scale that holds the scales of several runs, or null where none of them has one.
 *
 * @param {([number, number] | null)[]} scales
 * @param {boolean} isLinear
 * @returns {Scale | null}
 */
export function commonScale(scales, isLinear) {
  const known = scales.filter((scale) => scale !== null);
  if (!known.length) return null;
  const low = Math.min(...known.map(([from]) => from));
  const high = Math.max(...known.map(([, to]) => to));
  return {low, high, isLinear};
}

/**
 * Returns where on the scale `value` lies, between 0 and 1. On a logarithmic scale zero is lowest.
 *
 * @param {number} value
 * @param {Scale} scale
 */
export function share(value, {low, high, isLinear}) {
  const [at, from, to] = isLinear ? [value, low, high] : [value, low, high].map(Math.log10);
  return to > from ? Math.min(Math.max((at - from) / (to - from), 0), 1) : 0.5;
}

/**
 * Returns a level for each value.
 *
 * @param {Float32Array} values
 * @param {Scale | null} scale
 */
export function levels(values, scale) {
  const result = new Uint8Array(values.length);
  const {low: lowest, high: highest, isLinear} = scale ?? {low: 1, high: 1, isLinear: false};
  const low = isLinear ? lowest : Math.log10(lowest);
  const span = (isLinear ? highest : Math.log10(highest)) - low;
  for (let index = 0; index < values.length; index++) {
    const value = values[index];
    if (value !== value) continue; // NaN: not measured
    if (value === Infinity || value === -Infinity) result[index] = NOT_FINITE;
    else result[index] = levelAt(span > 0 ? ((isLinear ? value : Math.log10(value)) - low) / span : 0.5);
  }
  return result;
}

/**
 * Returns the level of a place on the scale. Below its lower end, and for the logarithm of a negative number, it is 1.
 *
 * @param {number} at
 */
function levelAt(at) {
  return 1 + Math.round((SHADES - 1) * (at > 1 ? 1 : at > 0 ? at : 0));
}
