/** Which steps and rows a map shows: zooming and panning, as arithmetic. A view is {from, to}, `to` exclusive. */

export const LEAST_STEPS = 5; // in view

/** `view` zoomed by `factor` (below 1: closer) around `at`, kept within `bounds`, no closer than `least` wide. */
export function zoomed(view, factor, at, bounds, least) {
  const whole = bounds.to - bounds.from;
  const width = Math.min(Math.max((view.to - view.from) * factor, Math.min(least, whole)), whole);
  const share = (at - view.from) / (view.to - view.from);
  return panned({from: at - share * width, to: at + (1 - share) * width}, 0, bounds);
}

/** `view` moved by `distance`, kept within `bounds`. */
export function panned(view, distance, bounds) {
  const width = Math.min(view.to - view.from, bounds.to - bounds.from);
  const from = Math.min(Math.max(view.from + distance, bounds.from), bounds.to - width);
  return {from, to: from + width};
}

/** A view of whole numbers `from` to `to` with room on either side, kept within `bounds`. */
export function around(from, to, room, bounds) {
  const wanted = {from: from - room, to: to + 1 + room};
  return panned(wanted, 0, bounds);
}
