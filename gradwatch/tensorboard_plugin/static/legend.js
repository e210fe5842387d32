// @ts-check

/** Shows what the colours and marks of the map mean. */

import {figure, NOT_FINITE} from './axis.js';
import {shade} from './colours.js';
import {element, sized} from './dom.js';

/** @import {Scale} from './colours.js' */

const [WIDTH, HEIGHT] = [180, 12]; // of the bar of colours

/**
 * Fills `container` with the legend of a statistic.
 *
 * @param {HTMLElement} container
 * @param {Scale | null} scale null while there is nothing to show.
 * @param {string} label of the statistic.
 */
export function showLegend(container, scale, label) {
  const kind = scale && !scale.isLinear ? `${label}, log scale` : label;
  container.replaceChildren(
    element('span', {className: 'key'}, kind),
    element('span', {className: 'key'}, ...(scale ? bar(scale) : [])),
    swatch('not-finite', NOT_FINITE),
    swatch('not-measured', 'not measured'),
    swatch('clipped', 'clipped'),
    swatch('skipped', 'skipped'),
    swatch('outline', 'finding'),
  );
}

/** @param {Scale} scale */
function bar({low, high, isLinear}) {
  const canvas = element('canvas', {role: 'img', 'aria-label': 'Colour scale, from dark to bright'});
  const context = sized(canvas, WIDTH, HEIGHT);
  for (let x = 0; x < WIDTH; x++) {
    context.fillStyle = `rgb(${shade(x / (WIDTH - 1)).join()})`;
    context.fillRect(x, 0, 1, HEIGHT);
  }
  return [
    element('span', {}, `${isLinear ? '' : '≤ '}${figure(low)}`),
    canvas,
    element('span', {}, `${isLinear ? '' : '≥ '}${figure(high)}`),
  ];
}

/**
 * @param {string} name of the style.
 * @param {string} text
 */
function swatch(name, text) {
  return element('span', {className: 'key'}, element('i', {className: `swatch ${name}`}), text);
}
