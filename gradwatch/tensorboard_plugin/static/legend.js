// @ts-check

/** Shows what the colours of a map mean. */

import {figure, NOT_FINITE} from './axis.js';
import {diverging, shade} from './colours.js';
import {element, isDark, sized} from './dom.js';

/** @import {Scale} from './colours.js' */

const [WIDTH, HEIGHT] = [120, 12]; // of the bar of colours

/**
 * Fills `container` with the legend of a map.
 *
 * @param {HTMLElement} container
 * @param {Scale | null} scale null while there is nothing to show.
 */
export function showLegend(container, scale) {
  container.replaceChildren(
    element('span', {className: 'key'}, ...(scale ? bar(scale) : [])),
    swatch('not-finite', NOT_FINITE),
    swatch('not-measured', 'not measured'),
  );
}

/** @param {Scale} scale */
function bar({low, high, isLinear, isRatio}) {
  const order = isRatio ? 'blue below the level, red above' : 'from dark to bright';
  const canvas = element('canvas', {role: 'img', 'aria-label': `Colour scale, ${order}`});
  const context = sized(canvas, WIDTH, HEIGHT);
  for (let x = 0; x < WIDTH; x++) {
    const position = x / (WIDTH - 1);
    context.fillStyle = `rgb(${(isRatio ? diverging(position, isDark()) : shade(position)).join()})`;
    context.fillRect(x, 0, 1, HEIGHT);
  }
  const unit = isRatio ? ' ×' : '';
  return [
    element('span', {}, `${isLinear ? '' : '≤ '}${figure(low)}${unit}`),
    canvas,
    element('span', {}, `${isLinear ? '' : '≥ '}${figure(high)}${unit}`),
  ];
}

/**
 * @param {string} name of the style.
 * @param {string} text
 */
function swatch(name, text) {
  return element('span', {className: 'key'}, element('i', {className: `swatch ${name}`}), text);
}
