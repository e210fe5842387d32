// @ts-check

/** Says what lies at a place of a map: in a tooltip at the mouse, and in a line for screen readers. */

import {askForArray} from './api.js';
import {counted, figure, stepsText, wholeNumber, withUnit} from './axis.js';
import {cellAt} from './sheet.js';
import {STRIPS, valueAt} from './strips.js';
import {hideTooltip, showTooltip} from './tooltip.js';

/** @import {Statistic} from './api.js' */
/** @import {Panel} from './panel.js' */
/** @import {Lines} from './tooltip.js' */

/** @typedef {{from: number, last: number}} Stretch of steps, both included. */

const RESTED = 80; // milliseconds after which the band is asked for

/** @type {number | undefined} */
let waiting;

/** Hides what was said. */
export function stopReading() {
  forget();
  hideTooltip();
}

function forget() {
  clearTimeout(waiting);
  waiting = undefined;
}

/**
 * Says what lies at a step and a row, and marks the step on all maps.
 *
 * @param {Panel} panel
 * @param {number} step
 * @param {number} row
 * @param {MouseEvent | null} event where the mouse is; null while keys move the place.
 */
export function readAt(panel, step, row, event) {
  forget();
  const {overview, app, rows} = panel;
  const layers = rows.members[row];
  if (!overview || !layers) return;
  app.hover(step);
  const {layer, value, when} = found(panel, step, layers);
  const title = overview.layers[layer];
  const isRatio = panel.statistic?.isRatio ?? false;
  const lines = [
    ...linesOf(panel.statistic, value, when),
    ...levelOf(panel.whole?.header.levels[layer], value, isRatio),
  ];
  const more = layers.length > 1 ? ` (${isRatio ? 'furthest' : 'highest'} of ${counted(layers.length, 'layer')})` : '';
  panel.readout.textContent = `step ${wholeNumber(step)} · ${title}${more} · ${lines[1][1]}`;
  if (!event) return;
  const show = (/** @type {Lines} */ rest) =>
    showTooltip(event.clientX, event.clientY, title + more, [...lines, ...rest]);
  show([]);
  waiting = setTimeout(() => void addBand(panel, step, layer, show), RESTED);
}

/**
 * Returns the layer among `layers` whose colour their row has at a step, its value, and the steps that it stands for.
 *
 * @param {Panel} panel
 * @param {number} step
 * @param {number[]} layers as indices.
 */
function found({sheets, statistic}, step, layers) {
  const sheet = sheets.findLast(({edges}) => cellAt(edges, step) >= 0);
  if (!sheet) return {layer: layers[0], value: NaN, when: {from: step, last: step}};
  return {...sheet.extremeAt(step, layers, statistic?.isRatio ?? false), when: stretchOf(sheet.edges, step)};
}

/**
 * Returns the layer among `layers` whose colour their row has at a step.
 *
 * @param {Panel} panel
 * @param {number} step
 * @param {number[]} layers as indices.
 */
export function layerAt(panel, step, layers) {
  return found(panel, step, layers).layer;
}

/**
 * Says what the strips hold at a step.
 *
 * @param {Panel} panel
 * @param {number} step
 * @param {MouseEvent} event
 */
export function readStrips(panel, step, event) {
  forget();
  const {course} = panel;
  panel.app.hover(step);
  if (!course) return;
  const {from, last} = stretchOf(course.edges, step);
  /** @type {Lines} */
  const lines = STRIPS.map(({name, label}) => [name === 'leap' ? 'largest leap' : label, valueAt(course, name, step)]);
  if (cellAt(course.edges, step) < 0) hideTooltip();
  else showTooltip(event.clientX, event.clientY, stepsText(from, last), lines);
}

/**
 * @param {Float64Array} edges
 * @param {number} step
 * @returns {Stretch}
 */
function stretchOf(edges, step) {
  const cell = cellAt(edges, step);
  return cell < 0 ? {from: step, last: step} : {from: edges[cell], last: edges[cell + 1] - 1};
}

/**
 * @param {Statistic | null} statistic
 * @param {number} value
 * @param {Stretch} when
 * @returns {Lines}
 */
function linesOf(statistic, value, when) {
  const name = statistic?.isRatio ? 'value' : (statistic?.label.toLowerCase() ?? 'value');
  return [
    ['when', stepsText(when.from, when.last)],
    [name, withUnit(statistic, value)],
  ];
}

/**
 * Says what the layer's level is, and for a ratio to it the norm.
 *
 * @param {number | null | undefined} level
 * @param {number} value
 * @param {boolean} isRatio
 * @returns {Lines}
 */
export function levelOf(level, value, isRatio) {
  if (typeof level !== 'number') return [];
  /** @type {Lines} */
  const norm = isRatio && Number.isFinite(value) ? [['gradient norm', figure(value * level)]] : [];
  return [...norm, ['its level', figure(level)]];
}

/**
 * Says between which values a layer is normal, where that is known.
 *
 * @param {number} floor
 * @param {number} ceiling
 * @returns {Lines}
 */
export function bandOf(floor, ceiling) {
  return ceiling > 0 ? [['normal', `${figure(floor)} to ${figure(ceiling)}`]] : [];
}

/**
 * Adds between which norms the layer is normal at this step, once the mouse rests.
 *
 * @param {Panel} panel
 * @param {number} step
 * @param {number} layer
 * @param {(lines: Lines) => void} show
 */
async function addBand(panel, step, layer, show) {
  const asked = waiting;
  try {
    const {header, values} = await askForArray('profile', {run: panel.run, statistic: 'grad_norm', step});
    const layers = header.shape[1];
    const [floor, ceiling] = ['floor', 'ceiling'].map((row) => values[header.rows.indexOf(row) * layers + layer]);
    if (asked === waiting) show(bandOf(floor, ceiling));
  } catch {
    // The tooltip does without: what cannot be read is said where the map is fetched.
  }
}
