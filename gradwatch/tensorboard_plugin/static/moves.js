// @ts-check

/** Defines what gestures over a map do: they zoom and pan its steps and rows, and choose a layer and a step. */

import {counted, figure, wholeNumber} from './axis.js';
import {LEAST_STEPS, panned, zoomed} from './view.js';

/** @import {Overview} from './api.js' */
/** @import {Actions} from './gestures.js' */
/** @import {Panel} from './panel.js' */
/** @import {View} from './view.js' */

/** @typedef {{overview: Overview, view: View, bounds: View}} Shown what a panel needs before anything can move. */

const LEAST_ROWS = 3; // in view

/**
 * Returns the actions for `panel`. They do nothing while it shows no map.
 *
 * @param {Panel} panel
 * @returns {Actions}
 */
export function movesOf(panel) {
  const {app} = panel;
  /** @type {<Places extends number[]>(act: (shown: Shown, ...places: Places) => void) => (...places: Places) => void} */
  const whenShown =
    (act) =>
    (...places) => {
      const {overview, rows} = panel;
      const {view, bounds} = app;
      if (overview && view && bounds && rows.length) act({overview, view, bounds}, ...places);
    };
  const rowAt = (/** @type {number} */ y) => at(y, panel.rowView);
  return {
    zoom: whenShown(({view, bounds}, /** @type {number} */ factor, /** @type {number} */ x) =>
      app.setView(zoomed(view, factor, at(x, view), bounds, LEAST_STEPS)),
    ),
    zoomRows: whenShown((_, /** @type {number} */ factor, /** @type {number} */ y) =>
      panel.setRows(zoomed(panel.rowView, factor, rowAt(y), panel.rowBounds, LEAST_ROWS)),
    ),
    pan: whenShown(({view, bounds}, /** @type {number} */ x, /** @type {number} */ y) => {
      if (y) panel.setRows(panned(panel.rowView, y * lengthOf(panel.rowView), panel.rowBounds));
      if (x) app.setView(panned(view, x * lengthOf(view), bounds));
    }),
    reset: whenShown(() => app.showAll()),
    pick: whenShown(({overview, view}, /** @type {number} */ x, /** @type {number} */ y) =>
      choose(panel, overview, Math.floor(at(x, view)), Math.floor(rowAt(y))),
    ),
    hover: whenShown(({overview, view}, /** @type {number} */ x, /** @type {number} */ y) =>
      read(panel, overview, Math.floor(at(x, view)), Math.floor(rowAt(y))),
    ),
    leave: whenShown(() => {
      panel.readout.textContent = '';
      app.hover(null);
    }),
    step: whenShown((shown, /** @type {number} */ by) => move(panel, shown, by, 0)),
    row: whenShown((shown, /** @type {number} */ by) => move(panel, shown, 0, by)),
  };
}

/** @param {View} view */
function lengthOf({from, to}) {
  return to - from;
}

/**
 * Returns the place at a share of `view`.
 *
 * @param {number} share
 * @param {View} view
 */
function at(share, view) {
  return view.from + share * lengthOf(view);
}

/**
 * @param {number} value
 * @param {number} least
 * @param {number} most
 */
function clamped(value, least, most) {
  return Math.min(Math.max(value, least), most);
}

/**
 * Chooses a step and the first layer of a row.
 *
 * @param {Panel} panel
 * @param {Overview} overview
 * @param {number} step
 * @param {number} row
 */
function choose(panel, overview, step, row) {
  const [layer] = panel.rows[clamped(row, 0, panel.rows.length - 1)];
  void panel.app.choose({step: within(overview, step), layer: overview.layers[layer]});
}

/**
 * Moves the chosen place by logged steps, or by rows of the map.
 *
 * @param {Panel} panel
 * @param {Shown} shown
 * @param {number} bySteps
 * @param {number} byRows
 */
function move(panel, {overview, view}, bySteps, byRows) {
  const {state} = panel.app;
  const row = clamped((panel.rowOf(state.layer) ?? -1) + byRows, 0, panel.rows.length - 1);
  const step = within(overview, neighbour(panel, state.step ?? Math.floor(view.from), bySteps));
  choose(panel, overview, step, row);
  panel.reveal(overview.layers[panel.rows[row][0]]);
  read(panel, overview, step, row);
}

/**
 * Returns the last step of the cell that is `by` cells away from `step`.
 *
 * @param {Panel} panel
 * @param {number} step
 * @param {number} by
 */
function neighbour(panel, step, by) {
  const sheet = panel.sheets.at(-1);
  const cell = sheet ? sheet.cellAt(step) : -1;
  if (!sheet || cell < 0 || !by) return step + by;
  return sheet.edges[clamped(cell + by, 0, sheet.cells - 1) + 1] - 1;
}

/**
 * @param {Overview} overview
 * @param {number} step
 */
function within({firstStep = 0, lastStep = 0}, step) {
  return clamped(step, firstStep, lastStep);
}

/**
 * Writes the layer, the step and the value at a place of the map below it.
 *
 * @param {Panel} panel
 * @param {Overview} overview
 * @param {number} step
 * @param {number} row
 */
function read(panel, overview, step, row) {
  const layers = panel.rows[row];
  if (!layers) return;
  const sheet = panel.sheets.findLast((each) => each.cellAt(step) >= 0);
  const value = sheet ? sheet.valueAt(step, layers) : NaN;
  const name = layers.length === 1 ? overview.layers[layers[0]] : `highest of ${counted(layers.length, 'layer')}`;
  panel.readout.textContent = `step ${wholeNumber(step)} · ${name} · ${figure(value)}`;
  panel.app.hover(step);
}
