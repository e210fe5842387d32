// @ts-check

/** Defines what gestures over a map do: they zoom and pan its steps and rows, and choose a layer and a step. */

import {layerAt, readAt, readStrips, stopReading} from './readout.js';
import {cellAt} from './sheet.js';
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
      if (overview && view && bounds && rows.members.length) act({overview, view, bounds}, ...places);
    };
  const rowAt = (/** @type {number} */ y) => at(y, panel.rows.view);
  return {
    zoom: whenShown(({view, bounds}, /** @type {number} */ factor, /** @type {number} */ x) =>
      app.setView(zoomed(view, factor, at(x, view), bounds, LEAST_STEPS)),
    ),
    zoomRows: whenShown((_, /** @type {number} */ factor, /** @type {number} */ y) =>
      panel.setRows(zoomed(panel.rows.view, factor, rowAt(y), panel.rows.bounds, LEAST_ROWS)),
    ),
    pan: whenShown(({view, bounds}, /** @type {number} */ x, /** @type {number} */ y) => {
      if (y) panel.setRows(panned(panel.rows.view, y * lengthOf(panel.rows.view), panel.rows.bounds));
      if (x) app.setView(panned(view, x * lengthOf(view), bounds));
    }),
    reset: whenShown(() => app.showAll()),
    pick: whenShown(({overview, view}, /** @type {number} */ x, /** @type {number} */ y) =>
      choose(panel, overview, Math.floor(at(x, view)), Math.floor(rowAt(y))),
    ),
    brush: whenShown(({view}, /** @type {number} */ from, /** @type {number} */ to) =>
      app.showBrush(selected(from, to, view)),
    ),
    select: whenShown(({view, bounds}, /** @type {number} */ from, /** @type {number} */ to) => {
      const steps = selected(from, to, view);
      app.showBrush(null);
      app.setView(zoomed(steps, 1, steps.from, bounds, LEAST_STEPS));
    }),
    hover(x, y, event) {
      if (app.view && panel.overview) readAt(panel, Math.floor(at(x, app.view)), Math.floor(rowAt(y)), event);
    },
    leave: whenShown(() => {
      stopReading();
      app.hover(null);
    }),
    step: whenShown((shown, /** @type {number} */ by) => move(panel, shown, by, 0)),
    row: whenShown((shown, /** @type {number} */ by) => move(panel, shown, 0, by)),
  };
}

/**
 * Returns the actions for the strips of `panel`: they have no rows.
 *
 * @param {Panel} panel
 * @param {Actions} moves those of its map.
 * @returns {Actions}
 */
export function stripMovesOf(panel, moves) {
  const stepAt = (/** @type {number} */ x) => Math.floor(at(x, panel.app.view ?? {from: 0, to: 1}));
  return {
    ...moves,
    zoomRows: () => {},
    pan: (x) => moves.pan(x, 0),
    pick: (x) => panel.overview && void panel.app.choose({step: within(panel.overview, stepAt(x))}),
    hover: (x, _, event) => readStrips(panel, stepAt(x), event),
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
 * Returns the steps between two shares of `view`, the smaller first, within it.
 *
 * @param {number} from
 * @param {number} to
 * @param {View} view
 * @returns {View}
 */
function selected(from, to, view) {
  const [first, last] = [from, to].map((share) => at(clamped(share, 0, 1), view));
  return {from: Math.min(first, last), to: Math.max(first, last)};
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
 * Chooses a step and a layer of a row, the one whose colour the row has there.
 *
 * @param {Panel} panel
 * @param {Overview} overview
 * @param {number} step
 * @param {number} row
 */
function choose(panel, overview, step, row) {
  const layer = layerAt(panel, step, panel.rows.members[clamped(row, 0, panel.rows.members.length - 1)]);
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
  const row = clamped((panel.rows.rowOf(state.layer) ?? -1) + byRows, 0, panel.rows.members.length - 1);
  const step = within(overview, neighbour(panel, state.step ?? Math.floor(view.from), bySteps));
  choose(panel, overview, step, row);
  panel.rows.scrollTo(overview.layers[panel.rows.members[row][0]]);
  readAt(panel, step, row, null);
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
  const cell = sheet ? cellAt(sheet.edges, step) : -1;
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
