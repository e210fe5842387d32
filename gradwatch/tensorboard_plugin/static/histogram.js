/** A layer's histogram over time, as a small map: steps across, entries' values up. */

import {figure, wholeNumber} from './axis.js';
import {shade} from './colours.js';
import {element, sized} from './dom.js';

const HEIGHT = 130;

/** @param {{kind: string, header: object, values: Float32Array}} answer of the question `entries`. */
export function paintHistogram({kind, header, values}, width) {
  const [steps, bins] = header.shape;
  const canvas = element('canvas', {
    role: 'img',
    'aria-label': `Histogram of the ${kind === 'grad' ? 'gradient' : 'weight'}'s entries over time`,
  });
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
  const what = kind === 'grad' ? 'Entries of the gradient' : 'Entries of the weight';
  return element(
    'figure',
    {},
    element('figcaption', {}, `${what}: ${low} (bottom) to ${high} (top), ${span}; bright: many.`),
    canvas,
  );
}
