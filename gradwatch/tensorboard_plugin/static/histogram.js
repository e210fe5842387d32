// @ts-check

/** Draws a layer's histograms over time as a small map: steps go across, values of the entries up. */

import {figure, stepsText} from './axis.js';
import {shade} from './colours.js';
import {element, sized} from './dom.js';
import {hideTooltip, showTooltip} from './tooltip.js';

/** @import {ArrayAnswer, EntriesHeader} from './api.js' */

/** @typedef {ArrayAnswer<EntriesHeader> & {kind: 'grad' | 'weight'}} Histogram */

const HEIGHT = 130;

/**
 * Makes the map and its caption.
 *
 * @param {Histogram} histogram
 * @param {number} width
 */
export function paintHistogram(histogram, width) {
  const {kind, header, values} = histogram;
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
  const span = stepsText(header.steps[0], header.steps[steps - 1]);
  canvas.addEventListener('mousemove', (event) => readAt(histogram, what, event));
  canvas.addEventListener('mouseleave', hideTooltip);
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

/**
 * Says, at the mouse, how many of the entries lie between which values.
 *
 * @param {Histogram} histogram
 * @param {string} what
 * @param {MouseEvent & {target: EventTarget | null}} event
 */
function readAt({header, values}, what, {target, offsetX, offsetY, clientX, clientY}) {
  if (!(target instanceof HTMLElement)) return;
  const [steps, bins] = header.shape;
  const at = (/** @type {number} */ share, /** @type {number} */ count) =>
    Math.min(Math.max(Math.floor(share * count), 0), count - 1);
  const step = at(offsetX / target.clientWidth, steps);
  const bin = at(1 - offsetY / target.clientHeight, bins);
  const [low, high] = header.axis;
  const [from, to] = [bin, bin + 1].map((edge) => figure(low + ((high - low) * edge) / bins));
  showTooltip(clientX, clientY, `Entries of the ${what}`, [
    ['when', stepsText(header.steps[step])],
    ['from … to', `${from} … ${to}`],
    ['share', `${figure(100 * values[step * bins + bin])} %`],
  ]);
}
