/** What the colours and marks mean. */

import {figure, NOT_FINITE} from './axis.js';
import {shade} from './colours.js';
import {element, sized} from './dom.js';

/** Fills `container` for `scale` (null: nothing to show yet). */
export function showLegend(container, scale, label) {
  const canvas = element('canvas', {role: 'img', 'aria-label': 'Colour scale, from dark to bright'});
  const context = sized(canvas, 180, 12);
  for (let x = 0; x < 180; x++) {
    context.fillStyle = `rgb(${shade(x / 179).join()})`;
    context.fillRect(x, 0, 1, 12);
  }
  const swatch = (name, text) => element('span', {className: 'key'}, element('i', {className: `swatch ${name}`}), text);
  const bar = scale
    ? [
        element('span', {}, `${scale.isLinear ? '' : '≤ '}${figure(scale.low)}`),
        canvas,
        element('span', {}, `${scale.isLinear ? '' : '≥ '}${figure(scale.high)}`),
      ]
    : [];
  const kind = scale && !scale.isLinear ? `${label}, log scale` : label;
  container.replaceChildren(
    element('span', {className: 'key'}, kind),
    element('span', {className: 'key'}, ...bar),
    swatch('not-finite', NOT_FINITE),
    swatch('not-measured', 'not measured'),
    swatch('clipped', 'clipped'),
    swatch('skipped', 'skipped'),
    swatch('outline', 'finding'),
  );
}
