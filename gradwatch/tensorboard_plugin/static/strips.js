// @ts-check

/** Draws the strips above a map: loss, learning rate, total norm and anomalies, over the same steps as the map. */

import {figure} from './axis.js';
import {element, hatch, sized, themed} from './dom.js';
import {cellAt} from './sheet.js';

/** @import {ArrayAnswer, CourseHeader} from './api.js' */
/** @import {View} from './view.js' */

/** @typedef {{edges: Float64Array, rows: Map<string, Float32Array>}} Course one run over time. */

/** @typedef {{name: string, label: string, title: string}} Strip */

/** @type {Strip[]} */
export const STRIPS = [
  {name: 'loss', label: 'loss', title: 'The loss'},
  {name: 'learning_rate', label: 'learning rate', title: 'The largest learning rate'},
  {name: 'total_norm', label: 'total norm', title: 'The norm of all gradients together, before clipping'},
  {
    name: 'leap',
    label: 'anomalies',
    title: 'The largest factor by which a layer’s norm leaps from one row to the next',
  },
];

const LEAST_DECADES = 1.2; // above it a strip is logarithmic
const LEAST_LEAP = 4; // anomalies: a strip is not scaled up until noise looks like one

/**
 * Returns the answer of the server by name of its rows.
 *
 * @param {ArrayAnswer<CourseHeader>} answer
 * @returns {Course}
 */
export function courseOf({header: {edges, rows}, values}) {
  const cells = Math.max(0, edges.length - 1);
  return {
    edges: Float64Array.from(edges),
    rows: new Map(rows.map((name, row) => [name, values.subarray(row * cells, (row + 1) * cells)])),
  };
}

/**
 * Draws all strips, one below the other.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {Course | null} course
 * @param {View} view steps
 * @param {number} width
 * @param {number} height of one strip.
 */
export function paintStrips(canvas, course, view, width, height) {
  const context = sized(canvas, width, height * STRIPS.length);
  context.clearRect(0, 0, width, height * STRIPS.length);
  STRIPS.forEach((strip, index) => {
    const top = index * height;
    context.fillStyle = themed('grid');
    context.fillRect(0, top + height - 1, width, 1);
    if (course) paintStrip(context, strip, course, view, width, top + 3, height - 6);
  });
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Strip} strip
 * @param {Course} course
 * @param {View} view
 * @param {number} width
 * @param {number} top
 * @param {number} height
 */
function paintStrip(context, {name}, course, view, width, top, height) {
  const largest = course.rows.get(`${name} largest`) ?? new Float32Array();
  const smallest = course.rows.get(`${name} smallest`) ?? largest;
  const [first, last] = cellsIn(course.edges, view);
  const place = scaleOf(name, smallest, largest, first, last);
  const toPixel = (/** @type {number} */ step) => ((step - view.from) / (view.to - view.from)) * width;
  const line = themed(name === 'leap' ? 'cross' : 'line');
  const sick = hatch(context);
  for (let cell = first; cell < last; cell++) {
    const [left, right] = [toPixel(course.edges[cell]), toPixel(course.edges[cell + 1])];
    const across = Math.max(right - left, 1.5);
    if (Math.abs(largest[cell]) === Infinity) {
      context.fillStyle = sick;
      context.fillRect(left, top, across, height);
      continue;
    }
    const upper = place(largest[cell]);
    if (!Number.isFinite(upper)) continue;
    const lower = name === 'leap' ? 0 : place(smallest[cell]);
    const down = Math.max((upper - lower) * (height - 1.5), name === 'leap' ? 0 : 1.5);
    context.fillStyle = line;
    context.fillRect(left, top + (1 - upper) * (height - 1.5), across, down);
  }
}

/**
 * @param {Float64Array} edges
 * @param {View} view
 */
function cellsIn(edges, {from, to}) {
  const cells = edges.length - 1;
  let [first, last] = [0, Math.max(0, cells)];
  while (first < last && edges[first + 1] <= from) first++;
  while (last > first && edges[last - 1] >= to) last--;
  return [first, last];
}

/**
 * Returns a function from a value to its height in the strip, 0 to 1; NaN where it has none.
 *
 * @param {string} name
 * @param {ArrayLike<number>} smallest
 * @param {ArrayLike<number>} largest
 * @param {number} first cell
 * @param {number} last one past the last cell.
 * @returns {(value: number) => number}
 */
function scaleOf(name, smallest, largest, first, last) {
  let [low, high] = [Infinity, -Infinity];
  for (let cell = first; cell < last; cell++) {
    if (smallest[cell] < low && smallest[cell] > -Infinity) low = smallest[cell];
    if (largest[cell] > high && largest[cell] < Infinity) high = largest[cell];
  }
  if (name === 'leap') [low, high] = [usual(largest, first, last), Math.max(high, LEAST_LEAP)];
  const isLogarithmic = name === 'leap' || (low > 0 && Math.log10(high / low) > LEAST_DECADES);
  const at = isLogarithmic ? Math.log : Number;
  const [from, span] = [at(low), at(high) - at(low)];
  return (value) => (span > 0 ? Math.min(Math.max((at(value) - from) / span, 0), 1) : value === value ? 0.5 : NaN);
}

/**
 * Returns the median leap, at which the strip begins: noise stays flat, and one odd row stands out.
 *
 * @param {ArrayLike<number>} values
 * @param {number} first
 * @param {number} last
 */
function usual(values, first, last) {
  const finite = [...Array.from(values).slice(first, last)].filter(Number.isFinite).sort((one, other) => one - other);
  return finite[finite.length >> 1] ?? 1;
}

/** Makes the names beside the strips. `showAt` writes the values at a step beside them. */
export function stripNames() {
  const values = STRIPS.map(() => element('span', {className: 'value'}));
  const names = STRIPS.map(({label, title}, index) =>
    element('div', {className: 'strip-name', title}, element('span', {}, label), values[index]),
  );
  const showAt = (/** @type {Course | null} */ course, /** @type {number | null} */ step) => {
    STRIPS.forEach(({name}, index) => (values[index].textContent = valueAt(course, name, step)));
  };
  return {element: element('div', {className: 'strip-names'}, ...names), showAt};
}

/**
 * Writes the value of a strip at a step; without a step, the last one.
 *
 * @param {Course | null} course
 * @param {string} name
 * @param {number | null} step
 */
export function valueAt(course, name, step) {
  const row = course?.rows.get(`${name} largest`);
  if (!course || !row) return '';
  const cell = step === null ? row.length - 1 : cellAt(course.edges, step);
  const value = cell < 0 ? NaN : row[cell];
  if (Number.isNaN(value)) return '–';
  if (!Number.isFinite(value)) return 'not finite';
  return name === 'leap' ? `${figure(value)} ×` : figure(value);
}
