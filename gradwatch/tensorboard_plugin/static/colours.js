/**
 * Values → levels → colours. The scale is matplotlib's viridis (CC0), whose lightness rises evenly, so that it reads
 * alike with any kind of colour blindness, and in print. Level 0 is "not measured", the last one NaN or Inf.
 */

const VIRIDIS =
  '44015448186a472d7b4240863b528b33638d2c728e26828e21918c1fa08828ae803fbc735ec96284d44baddc30d8e219fde725';

export const SHADES = 254;
export const NOT_MEASURED = 0;
export const NOT_FINITE = SHADES + 1;
export const NOT_FINITE_COLOUR = [255, 0, 0]; // furthest from viridis under each kind of colour blindness (the tests)

/** The colour at `position` from 0 to 1 of the scale. */
export function shade(position) {
  const last = VIRIDIS.length / 6 - 1;
  const at = Math.min(Math.max(position, 0), 1) * last;
  const below = Math.min(Math.floor(at), last - 1);
  return [0, 2, 4].map((offset) => {
    const [from, to] = [below, below + 1].map((index) => parseInt(VIRIDIS.substr(6 * index + offset, 2), 16));
    return Math.round(from + (to - from) * (at - below));
  });
}

/** One 32-bit pixel for each level, as ImageData holds them on the little-endian machines that browsers run on. */
export function palette(background) {
  const pixel = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const shades = Array.from({length: SHADES}, (_, index) => pixel(shade(index / (SHADES - 1))));
  return Uint32Array.from([pixel(background), ...shades, pixel(NOT_FINITE_COLOUR)]);
}

/** The one scale of several runs: their scales' union; null where none has any. */
export function commonScale(scales, isLinear) {
  const known = scales.filter(Boolean);
  if (!known.length) return null;
  const low = Math.min(...known.map(([from]) => from));
  const high = Math.max(...known.map(([, to]) => to));
  return {low, high, isLinear};
}

/** Share of the scale at which `value` stands; zero is lowest on a logarithmic one. */
export function share(value, {low, high, isLinear}) {
  const [at, from, to] = isLinear ? [value, low, high] : [value, low, high].map(Math.log10);
  return to > from ? Math.min(Math.max((at - from) / (to - from), 0), 1) : 0.5;
}

/** A level for each value. */
export function levels(values, scale) {
  const result = new Uint8Array(values.length);
  if (!scale) scale = {low: 1, high: 1, isLinear: false};
  const {isLinear} = scale;
  const low = isLinear ? scale.low : Math.log10(scale.low);
  const span = (isLinear ? scale.high : Math.log10(scale.high)) - low;
  for (let index = 0; index < values.length; index++) {
    const value = values[index];
    if (value !== value) continue; // NaN: not measured
    if (value === Infinity || value === -Infinity) {
      result[index] = NOT_FINITE;
      continue;
    }
    const at = span > 0 ? ((isLinear ? value : Math.log10(value)) - low) / span : 0.5;
    result[index] = 1 + Math.round((SHADES - 1) * (at > 1 ? 1 : at > 0 ? at : 0));
  }
  return result;
}
