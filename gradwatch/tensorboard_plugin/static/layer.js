// @ts-check

/** Shows one layer over time, a column for each run: its norm with extremes and band, its other figures, its histograms. */

import {askForArray, messageOf} from './api.js';
import {figure, NOT_FINITE, stepsText, withUnit} from './axis.js';
import {drawable, lineChart, notFinite} from './charts.js';
import {element, themed} from './dom.js';
import {paintHistogram} from './histogram.js';
import {bandOf, levelOf} from './readout.js';
import {titleOf} from './runs.js';

/** @import {ArrayAnswer, CurveHeader, EntriesHeader, Statistic} from './api.js' */
/** @import {Chart, Line} from './charts.js' */
/** @import {Panel} from './panel.js' */
/** @import {State} from './state.js' */
/** @import {Lines} from './tooltip.js' */
/** @import {View} from './view.js' */

/** @typedef {ArrayAnswer<CurveHeader> & {statistic: Statistic}} Curve */
/** @typedef {ArrayAnswer<EntriesHeader> & {kind: 'grad' | 'weight'}} Histogram */
/** @typedef {{panel: Panel, curves: Curve[], histograms: Histogram[], problems: string[]}} Answers */
/** @typedef {Pick<Chart, 'spans' | 'place' | 'onHover'> & {layer: string, level: number | null | undefined}} Shared by all charts of a run. */

const MOST_POINTS = 2000; // of a curve
const DERIVED = new Set(['grad_rms', 'grad_ratio']); // multiples of the norm: their curves have the same shape
const COLOURS =
  `Hatched: ${NOT_FINITE}. Pink background: a finding. Pink line: the chosen step. Of the norm: above the dashed line it ` +
  'outgrows its level, below the dotted line it is faint.';

/**
 * Draws `layer` of each panel into `container`.
 *
 * @param {HTMLElement} container
 * @param {string} layer
 * @param {Panel[]} panels
 * @param {State} state
 * @param {View} view steps
 * @param {(step: number | null) => void} hover
 * @param {() => boolean} isLatest
 * @returns the charts, or none if another question has replaced this one.
 */
export async function showLayer(container, layer, panels, state, view, hover, isLatest) {
  const width = Math.min(MOST_POINTS, Math.max(50, Math.round(container.clientWidth / panels.length)));
  const answers = await Promise.all(panels.map((panel) => answersOf(panel, layer, view, width)));
  if (!isLatest()) return [];
  const heading = (/** @type {string} */ run) => (panels.length > 1 ? element('h3', {}, titleOf(run)) : null);
  const columns = answers.map(({panel: {run}}) => element('div', {className: 'column'}, heading(run)));
  container.replaceChildren(element('p', {className: 'quiet'}, COLOURS), ...columns);
  return answers.flatMap((each, index) => {
    const spans = each.panel.findingsOf(layer).map((finding) => each.panel.stretchOf(finding));
    const level = each.panel.whole?.header.levels[each.panel.overview?.layers.indexOf(layer) ?? -1];
    return draw(columns[index], each, {layer, level, spans, place: state.step, onHover: hover});
  });
}

/**
 * @param {Panel} panel
 * @param {string} layer
 * @param {View} view
 * @param {number} width
 * @returns {Promise<Answers>}
 */
async function answersOf(panel, layer, view, width) {
  const {run, overview} = panel;
  if (!overview?.layers.includes(layer)) return {panel, curves: [], histograms: [], problems: []};
  const stretch = {run, layer, from: Math.floor(view.from), to: Math.ceil(view.to) - 1, width};
  const statistics = overview.statistics.filter(({name}) => !DERIVED.has(name));
  const curves = statistics.map(async (statistic) => ({
    statistic,
    ...(await askForArray('curve', {...stretch, statistic: statistic.name})),
  }));
  const kinds = /** @type {const} */ (['grad', 'weight']);
  const histograms = kinds.map(async (kind) => ({kind, ...(await askForArray('entries', {run, layer, kind}))}));
  const [drawn, entries] = await Promise.all([Promise.allSettled(curves), Promise.allSettled(histograms)]);
  const problems = [...failures(drawn), ...failures(entries)];
  return {panel, curves: successes(drawn), histograms: successes(entries), problems: [...new Set(problems)]};
}

/**
 * @template T
 * @param {PromiseSettledResult<T>[]} results
 */
function successes(results) {
  return results.filter((result) => result.status === 'fulfilled').map(({value}) => value);
}

/** @param {PromiseSettledResult<unknown>[]} results */
function failures(results) {
  return results.filter((result) => result.status === 'rejected').map(({reason}) => messageOf(reason));
}

/**
 * @param {HTMLElement} column
 * @param {Answers} answers
 * @param {Shared} shared
 */
function draw(column, {curves, histograms, problems}, shared) {
  column.append(...problems.map((problem) => element('p', {className: 'error'}, problem)));
  if (!curves.length) {
    if (!problems.length) column.append(element('p', {className: 'quiet'}, 'This run has no such layer.'));
    return [];
  }
  const charts = drawCurves(column, curves, shared);
  const logged = histograms.filter(({header}) => header.steps.length);
  for (const each of logged) column.append(paintHistogram(each, column.clientWidth));
  if (!logged.length) {
    column.append(element('p', {className: 'quiet'}, 'No histograms. To log them: watch(…, histograms=True).'));
  }
  return charts;
}

/**
 * Draws the norm across the column, and the other figures below it. Every target is in the page before the first chart is
 * drawn, because the number of targets decides how wide each chart is.
 *
 * @param {HTMLElement} column
 * @param {Curve[]} curves
 * @param {Shared} shared
 */
function drawCurves(column, curves, shared) {
  const figures = element('div', {className: 'figures'});
  const measured = curves.filter(({values}) => values.some((value) => !Number.isNaN(value)));
  const targets = measured.map(({statistic}) => {
    const target = element('div', {className: 'chart'});
    (statistic.name === 'grad_norm' ? column : figures).append(target);
    if (!figures.isConnected) column.append(figures);
    return target;
  });
  return measured.map((curve, index) => drawCurve(targets[index], curve, shared)).filter((chart) => chart !== null);
}

/**
 * @param {HTMLElement} target
 * @param {Curve} curve
 * @param {Shared} shared
 */
function drawCurve(target, {statistic, header, values}, shared) {
  const {name, label, isShare} = statistic;
  const x = header.steps;
  if (!isShare && !values.some((value) => value > 0 && value < Infinity)) {
    const found = [values.includes(0) && '0', values.includes(Infinity) && NOT_FINITE].filter(Boolean).join(' or ');
    target.append(element('p', {className: 'quiet'}, `${label}: ${found} at every step in view.`));
    return null;
  }
  const rows = rowsOf(header, values);
  if (name === 'grad_norm') {
    const sick = notFinite(x, rows.highest);
    const read = readingOf(shared.layer, x, (at) => normAt(rows, at, shared.level));
    return lineChart(target, {...shared, title: 'Gradient norm', height: 190, x, ...normLines(rows), sick, read});
  }
  const row = rows[header.rows[0]];
  const lines = [{values: drawable(row, isShare), colour: themed('line')}];
  return lineChart(target, {
    ...shared,
    title: label,
    height: 150,
    x,
    lines,
    isLinear: isShare,
    sick: notFinite(x, row),
    read: readingOf(shared.layer, x, (at) => [[label.toLowerCase(), withUnit(statistic, row[at])]]),
  });
}

/**
 * Returns what the tooltip says at a place of a chart. A point stands for the steps since the one before it.
 *
 * @param {string} layer
 * @param {number[]} steps
 * @param {(index: number) => Lines} linesAt
 * @returns {Chart['read']}
 */
function readingOf(layer, steps, linesAt) {
  return (index) => {
    const when = stepsText(index ? steps[index - 1] + 1 : steps[index], steps[index]);
    return {title: layer, lines: [['when', when], ...linesAt(index)]};
  };
}

/**
 * Says how large the norm was, what its level is, and between which norms it is normal.
 *
 * @param {Record<string, Float32Array>} rows
 * @param {number} at an index of `rows`.
 * @param {number | null | undefined} level
 * @returns {Lines}
 */
function normAt({highest, lowest, floor, ceiling}, at, level) {
  const [low, high] = [lowest[at], highest[at]];
  return [
    ['gradient norm', low === high ? figure(high) : `${figure(low)} to ${figure(high)}`],
    ...levelOf(level, NaN, false),
    ...(ceiling ? bandOf(floor[at], ceiling[at]) : []),
  ];
}

/**
 * @param {CurveHeader} header
 * @param {Float32Array} values
 * @returns {Record<string, Float32Array>}
 */
function rowsOf({rows, steps}, values) {
  return Object.fromEntries(
    rows.map((name, row) => [name, values.subarray(row * steps.length, (row + 1) * steps.length)]),
  );
}

/**
 * Returns the lines of the norm, with a band between the extremes and, if it was logged, one of what is normal.
 *
 * @param {Record<string, Float32Array>} rows
 * @returns {Pick<Chart, 'lines' | 'bands'>}
 */
function normLines(rows) {
  const values = (/** @type {string} */ name) => drawable(rows[name] ?? [], false);
  /** @type {Line[]} */
  const lines = [
    {values: values('highest'), colour: themed('line'), width: 1},
    {values: values('lowest'), colour: themed('line'), width: 1},
    {values: values('grad_norm'), colour: themed('line-strong'), width: 1.5},
  ];
  /** @type {Chart['bands']} */
  const bands = [{series: [1, 2], fill: themed('envelope')}];
  if (!rows.ceiling) return {lines, bands};
  lines.push(
    {values: values('ceiling'), colour: themed('high'), dash: [5, 3]},
    {values: values('floor'), colour: themed('low'), dash: [2, 3]},
  );
  return {lines, bands: [{series: [4, 5], fill: themed('band')}, ...bands]};
}
