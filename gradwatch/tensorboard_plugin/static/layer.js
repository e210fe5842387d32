/** One layer over time: its norm with extremes and band, its other figures, its histograms; a column for each run. */

import {askForArray} from './api.js';
import {NOT_FINITE} from './axis.js';
import {drawable, lineChart, notFinite} from './charts.js';
import {element, themed} from './dom.js';
import {paintHistogram} from './histogram.js';

const MOST_POINTS = 2000; // of a curve
const DERIVED = new Set(['grad_rms', 'grad_ratio']); // the same curve as the norm, at another height
const COLOURS = `Red: ${NOT_FINITE}. Pink ground: a finding. Pink line: the step looked at.`;

/** Draws `state.layer` of each panel into `container`; returns the charts, none where another was asked for since. */
export async function showLayer(container, panels, state, view, hover, isLatest) {
  const width = Math.min(MOST_POINTS, Math.max(50, Math.round(container.clientWidth / panels.length)));
  const columns = await Promise.all(panels.map((panel) => answersOf(panel, state.layer, view, width)));
  if (!isLatest()) return [];
  const made = columns.map(({panel}) => element('div', {className: 'column'}, element('h3', {}, panel.run)));
  container.replaceChildren(element('p', {className: 'quiet'}, COLOURS), ...made);
  return columns.flatMap((column, index) => draw(made[index], column, state, hover));
}

async function answersOf(panel, layer, view, width) {
  if (!panel.overview?.layers.includes(layer)) return {panel, curves: [], histograms: [], problems: []};
  const stretch = {run: panel.run, layer, from: Math.floor(view.from), to: Math.ceil(view.to) - 1, width};
  const statistics = panel.overview.statistics.filter(({name}) => !DERIVED.has(name));
  const curves = statistics.map(async (statistic) => ({
    statistic,
    ...(await askForArray('curve', {...stretch, statistic: statistic.name})),
  }));
  const histograms = ['grad', 'weight'].map(async (kind) => ({
    kind,
    ...(await askForArray('entries', {run: panel.run, layer, kind})),
  }));
  return {panel, ...(await settled({curves, histograms}))};
}

/** What could be had of each list of promises, and what was said of the rest. */
async function settled(lists) {
  const problems = new Set();
  const had = {};
  for (const [name, promises] of Object.entries(lists)) {
    const results = await Promise.allSettled(promises);
    had[name] = results.filter(({status}) => status === 'fulfilled').map(({value}) => value);
    results.filter(({status}) => status === 'rejected').forEach(({reason}) => problems.add(reason.message));
  }
  return {...had, problems: [...problems]};
}

function draw(column, {panel, curves, histograms, problems}, state, hover) {
  column.append(...problems.map((problem) => element('p', {className: 'error'}, problem)));
  if (!curves.length) {
    if (!problems.length) column.append(element('p', {className: 'quiet'}, 'This run has no such layer.'));
    return [];
  }
  const spans = panel.findingsOf(state.layer).map((finding) => panel.stretchOf(finding));
  const shared = {spans, place: state.step, onHover: hover};
  const figures = element('div', {className: 'figures'});
  const measured = curves.filter(({values}) => values.some((value) => value === value));
  const charts = measured
    .map((curve) => {
      const target = element('div', {className: 'chart'});
      (curve.statistic.name === 'grad_norm' ? column : figures).append(target);
      if (!figures.isConnected) column.append(figures);
      return [target, curve];
    })
    .map(([target, curve]) => drawCurve(target, curve, shared))
    .filter(Boolean);
  const logged = histograms.filter(({header}) => header.steps.length);
  for (const each of logged) column.append(paintHistogram(each, column.clientWidth));
  if (!logged.length) {
    column.append(element('p', {className: 'quiet'}, 'No histograms: watch(…, histograms=True) logs them.'));
  }
  return charts;
}

function drawCurve(target, {statistic, header, values}, shared) {
  const rows = Object.fromEntries(
    header.rows.map((name, row) => [name, values.subarray(row * header.steps.length, (row + 1) * header.steps.length)]),
  );
  const x = header.steps;
  if (!statistic.isShare && !values.some((value) => value > 0 && value < Infinity)) {
    const found = [values.includes(0) && '0', values.includes(Infinity) && NOT_FINITE].filter(Boolean).join(' or ');
    target.append(element('p', {className: 'quiet'}, `${statistic.label}: ${found} at every step in view.`));
    return null;
  }
  if (statistic.name !== 'grad_norm') {
    const line = {
      label: statistic.label,
      values: drawable(rows[header.rows[0]], statistic.isShare),
      colour: themed('line'),
    };
    return lineChart(target, {
      ...shared,
      title: statistic.label,
      height: 150,
      x,
      lines: [line],
      isLinear: statistic.isShare,
      sick: notFinite(x, rows[header.rows[0]]),
    });
  }
  return lineChart(target, {
    ...shared,
    title: 'Gradient norm',
    height: 240,
    x,
    ...normLines(rows),
    sick: notFinite(x, rows.highest),
  });
}

function normLines(rows) {
  const line = (name, label, colour, more = {}) => ({
    label,
    colour,
    values: drawable(rows[name] ?? [], false),
    ...more,
  });
  const lines = [
    line('highest', 'Highest', themed('line'), {width: 1}),
    line('lowest', 'Lowest', themed('line'), {width: 1}),
    line('grad_norm', 'At the row', themed('line-strong'), {width: 1.5}),
  ];
  const bands = [{series: [1, 2], fill: themed('envelope')}];
  if (!rows.ceiling) return {lines, bands};
  lines.push(
    line('ceiling', 'Outgrows above', themed('high'), {dash: [5, 3]}),
    line('floor', 'Faint below', themed('low'), {dash: [2, 3]}),
  );
  return {lines, bands: [{series: [4, 5], fill: themed('band')}, ...bands]};
}
