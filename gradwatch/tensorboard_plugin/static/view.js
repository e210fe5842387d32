// @ts-check

/** Computes which steps and rows a map shows when it is zoomed and panned. */

/** @typedef {{from: number, to: number}} View a stretch of steps or rows; `to` is not part of it. */

export const LEAST_STEPS = 5; // a view of steps is at least as wide

/**
 * Zooms `view` around `at` and keeps it within `bounds`.
 *
 * @param {View} view
 * @param {number} factor below 1 to see less, larger.
 * @param {number} at the place that stays where it is.
 * @param {View} bounds
 * @param {number} least the narrowest view.
 * @returns {View}
 */
export function zoomed(view, factor, at, bounds, least) {
  const whole = bounds.to - bounds.from;
  const width = Math.min(Math.max((view.to - view.from) * factor, Math.min(least, whole)), whole);
  const share = (at - view.from) / (view.to - view.from);
  return panned({from: at - share * width, to: at + (1 - share) * width}, 0, bounds);
}

/**
 * Moves `view` by `distance` and keeps it within `bounds`.
 *
 * @param {View} view
 * @param {number} distance
 * @param {View} bounds
 * @returns {View}
 */
export function panned(view, distance, bounds) {
  const width = Math.min(view.to - view.from, bounds.to - bounds.from);
  const from = Math.min(Math.max(view.from + distance, bounds.from), bounds.to - width);
  return {from, to: from + width};
}

/**
 * Returns a view of the whole numbers `from` to `to` with `room` on either side, kept within `bounds`.
 *
 * @param {number} from
 * @param {number} to
 * @param {number} room
 * @param {View} bounds
 * @returns {View}
 */
export function around(from, to, room, bounds) {
  const wanted = {from: from - room, to: to + 1 + room};
  return panned(wanted, 0, bounds);
}
