/** What gestures over a panel's map do: they zoom and pan its steps and rows, and choose a layer and a step. */

import {figure, wholeNumber} from './axis.js';
import {LEAST_STEPS, panned, zoomed} from './view.js';

const LEAST_ROWS = 3;

/** The actions that gestures.js calls, for `panel`. */
export function movesOf(panel) {
  const {app} = panel;
  const stepAt = (x) => app.view.from + x * (app.view.to - app.view.from);
  const rowAt = (y) => panel.rowView.from + y * (panel.rowView.to - panel.rowView.from);
  const isReady = () => Boolean(app.view && panel.rows?.length);
  const actions = {
    zoom: (factor, x) => app.setView(zoomed(app.view, factor, stepAt(x), app.bounds, LEAST_STEPS)),
    zoomRows: (factor, y) => panel.setRows(zoomed(panel.rowView, factor, rowAt(y), panel.rowBounds, LEAST_ROWS)),
    pan: (x, y) => {
      if (y) panel.setRows(panned(panel.rowView, y * (panel.rowView.to - panel.rowView.from), panel.rowBounds));
      if (x) app.setView(panned(app.view, x * (app.view.to - app.view.from), app.bounds));
    },
    reset: () => app.showAll(),
    pick: (x, y) => choose(panel, Math.floor(stepAt(x)), Math.floor(rowAt(y))),
    hover: (x, y) => read(panel, Math.floor(stepAt(x)), Math.floor(rowAt(y))),
    leave: () => {
      panel.readout.textContent = '';
      app.hover(null);
    },
    step: (by) => move(panel, by, 0),
    row: (by) => move(panel, 0, by),
  };
  return Object.fromEntries(
    Object.entries(actions).map(([name, act]) => [name, (...places) => isReady() && act(...places)]),
  );
}

function choose(panel, step, row) {
  const layer = panel.rows[Math.min(Math.max(row, 0), panel.rows.length - 1)][0];
  panel.app.choose({step: within(panel, step), layer: panel.overview.layers[layer]});
}

/** One row of the log, or one row of the map, on from the place looked at. */
function move(panel, bySteps, byRows) {
  const {state, view} = panel.app;
  const row = Math.min(Math.max((panel.rowOf(state.layer) ?? -1) + byRows, 0), panel.rows.length - 1);
  const step = within(panel, neighbour(panel, state.step ?? Math.floor(view.from), bySteps));
  choose(panel, step, row);
  panel.reveal(panel.overview.layers[panel.rows[row][0]]);
  read(panel, step, row);
}

function neighbour(panel, step, by) {
  const sheet = panel.sheets.at(-1);
  const cell = sheet ? sheet.cellAt(step) : -1;
  return cell < 0 || !by ? step + by : sheet.edges[Math.min(Math.max(cell + by, 0), sheet.cells - 1) + 1] - 1;
}

function within({overview}, step) {
  return Math.min(Math.max(step, overview.firstStep ?? 0), overview.lastStep ?? 0);
}

/** Says what stands at a place of the map. */
function read(panel, step, row) {
  const layers = panel.rows[row];
  if (!layers) return;
  const sheet = panel.sheets.findLast((each) => each.cellAt(step) >= 0);
  const value = sheet ? sheet.valueAt(step, layers) : NaN;
  const name = layers.length === 1 ? panel.overview.layers[layers[0]] : `highest of ${layers.length} layers`;
  panel.readout.textContent = `step ${wholeNumber(step)} · ${name} · ${figure(value)}`;
  panel.app.hover(step);
}
