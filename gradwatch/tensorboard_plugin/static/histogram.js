// @ts-check

/** Draws a layer's histograms over time as a small map: steps go across, values of the entries up. */

import {figure, wholeNumber} from './axis.js';
import {shade} from './colours.js';
import {element, sized} from './dom.js';

/** @import {ArrayAnswer, EntriesHeader} from './api.js' */

const HEIGHT = 130;

/**
 * Makes the map and its caption.
 *
 * @param {ArrayAnswer<EntriesHeader> & {kind: 'grad' | 'weight'}} answer
 * @param {number} width
 */
export function paintHistogram({kind, header, values}, width) {
  const [steps, bins] = header.shape;
  const what = kind === 'grad' ? 'gradient' : 'weight';
  const canvas = element('canvas', {role: 'img', 'aria-label': `Histogram of the ${what}'s entries over time`});
  const context = sized(canvas, width, HEIGHT);
  const most = values.reduce((highest, value) => Math.max(highest, value), 0) || 1;
  for (let step = 0; step < steps; step++) {
    const [left, right] = [step, step + 1].map((at) => Math.round((at / steps) * width));
    for (let bin = 0; bin < bins; bin++) {
      context.fillStyle = `rgb(${shade(Math.sqrt(values[step * bins + bin] / most)).join()})`;
      const [top, bottom] = [bins - bin - 1, bins - bin].map((at) => Math.round((at / bins) * HEIGHT));
      context.fillRect(left, top, Math.max(1, right - left), bottom - top);
    }
  }
  const [low, high] = header.axis.map(figure);
  const span = `steps ${wholeNumber(header.steps[0])} to ${wholeNumber(header.steps[steps - 1])}`;
  return element(
    'figure',
    {},
    element(
      'figcaption',
      {},
      `Entries of the ${what} from ${low} (bottom) to ${high} (top), ${span}. Bright means many entries.`,
    ),
    canvas,
  );
}
