// @ts-check

/** Shows one step along depth: every layer of each run in forward order. Vanishing and exploding show as slopes. */

import {askForArray, messageOf} from './api.js';
import {NOT_FINITE, stepsText, withUnit} from './axis.js';
import {drawable, lineChart} from './charts.js';
import {element, themed} from './dom.js';
import {bandOf} from './readout.js';

/** @import {ArrayAnswer, Overview, ProfileHeader, Statistic} from './api.js' */
/** @import {Line} from './charts.js' */
/** @import {Panel} from './panel.js' */
/** @import {State} from './state.js' */
/** @import {Lines} from './tooltip.js' */

/**
 * What one run answered.
 *
 * @typedef {ArrayAnswer<ProfileHeader> & {panel: Panel, overview: Overview, index: Map<string, number>}} Answer
 */

const LINES = ['line-strong', 'high', 'low', 'line']; // colours of runs; the fifth run has the first colour again

/**
 * Draws all layers at `step` into `container`.
 *
 * @param {HTMLElement} container
 * @param {number} step
 * @param {Panel[]} panels
 * @param {Statistic} statistic
 * @param {State} state
 * @param {() => boolean} isLatest
 * @returns the charts, or none if another question has replaced this one.
 */
export async function showProfile(container, step, panels, statistic, state, isLatest) {
  const answers = await Promise.allSettled(panels.map((panel) => answerOf(panel, statistic, step)));
  if (!isLatest()) return [];
  const known = answers
    .map((answer) => (answer.status === 'fulfilled' ? answer.value : null))
    .filter((answer) => answer !== null);
  const failed = answers.filter((answer) => answer.status === 'rejected');
  const problems = new Set(failed.map(({reason}) => messageOf(reason)));
  container.replaceChildren(...[...problems].map((problem) => element('p', {className: 'error'}, problem)));
  if (!known.length) return [];
  container.append(...captionOf(known));
  return draw(container, known, statistic, state.layer);
}

/**
 * @param {HTMLElement} container
 * @param {Answer[]} answers at least one.
 * @param {Statistic} statistic
 * @param {string | null} selected a layer.
 */
function draw(container, answers, statistic, selected) {
  const [{panel, overview}] = answers;
  const order = panel.order.map((layer) => overview.layers[layer]);
  const lines = answers.flatMap((answer, index) => linesOf(answer, order, statistic, colourOf(index)));
  if (!lines.some(({values}) => values.some((value) => value !== null && value !== undefined))) {
    const text = `${statistic.label}: no layer has a finite number above 0 at this step.`;
    container.append(element('p', {className: 'quiet'}, text));
    return [];
  }
  const target = element('div', {className: 'chart'});
  container.append(target);
  const x = order.map((_, index) => index);
  const place = selected === null ? -1 : order.indexOf(selected);
  return [
    lineChart(target, {
      title: `${statistic.label} along depth`,
      height: 260,
      x,
      lines,
      isLinear: statistic.isShare,
      nameOf: (index) => order[index] ?? '',
      read: (index) => ({title: order[index], lines: linesAt(answers, order[index], statistic)}),
      place: place < 0 ? null : place,
      syncKey: 'depth',
      sick: x.filter((index) => answers.some((answer) => Math.abs(valueOf(answer, order[index])) === Infinity)),
    }),
  ];
}

/**
 * @param {Panel} panel
 * @param {Statistic} statistic
 * @param {number} step
 * @returns {Promise<Answer | null>} null where the run has not logged the statistic.
 */
async function answerOf(panel, statistic, step) {
  const {run, overview} = panel;
  if (!overview?.statistics.some(({name}) => name === statistic.name)) return null;
  const answer = await askForArray('profile', {run, statistic: statistic.name, step});
  return {...answer, panel, overview, index: new Map(overview.layers.map((name, layer) => [name, layer]))};
}

/** @param {number} index of a run among those that are shown. */
function colourOf(index) {
  return themed(LINES[index % LINES.length]);
}

/**
 * Says for which steps the figures of each run stand, in its colour where there are several runs.
 *
 * @param {Answer[]} answers
 */
function captionOf(answers) {
  const keys = answers.map(({panel, header: {since, step}}, index) => {
    const swatch = element('i', {className: 'swatch', style: {background: colourOf(index)}});
    return element(
      'span',
      {className: 'key'},
      answers.length > 1 ? swatch : null,
      `${panel.run}: ${stepsText(since, step)}`,
    );
  });
  return [
    element('p', {className: 'legend'}, ...keys),
    element('p', {className: 'quiet'}, `Line: weights. Dots: all other parameters. Hatched: ${NOT_FINITE}.`),
  ];
}

/**
 * Says what each run has at a layer; of a single run also between which values the layer is normal.
 *
 * @param {Answer[]} answers
 * @param {string} name
 * @param {Statistic} statistic
 * @returns {Lines}
 */
function linesAt(answers, name, statistic) {
  const value = (/** @type {Answer} */ answer) =>
    answer.index.has(name) ? withUnit(statistic, valueOf(answer, name)) : 'no such layer';
  if (answers.length > 1) return answers.map((answer) => [answer.panel.run, value(answer)]);
  const [answer] = answers;
  const {step, since} = answer.header;
  return [
    ['when', stepsText(since, step)],
    [statistic.label.toLowerCase(), value(answer)],
    ...bandOf(valueOf(answer, name, 'floor'), valueOf(answer, name, 'ceiling')),
  ];
}

/**
 * Returns a value of a layer: by default as the map shows it, the highest since the row before.
 *
 * @param {Answer} answer
 * @param {string} name
 * @param {string} row
 */
function valueOf({header: {rows}, values, index}, name, row = rows.includes('highest') ? 'highest' : rows[0]) {
  const layer = index.get(name);
  if (layer === undefined || !rows.includes(row)) return NaN;
  return values[rows.indexOf(row) * index.size + layer];
}

/**
 * Returns weights as a line, and everything else as dots beside it. With biases in the line, every slope would be a saw.
 *
 * @param {Answer} answer
 * @param {string[]} order names of layers.
 * @param {Statistic} statistic
 * @param {string} colour
 * @returns {Line[]}
 */
function linesOf(answer, order, statistic, colour) {
  const values = (/** @type {(name: string) => boolean} */ isWanted) =>
    drawable(
      order.map((name) => (isWanted(name) ? valueOf(answer, name) : NaN)),
      statistic.isShare,
    );
  const isWeight = (/** @type {string} */ name) => name.endsWith('weight');
  if (!order.some(isWeight)) return [{values: values(() => true), colour}];
  return [
    {values: joined(values(isWeight)), colour},
    {values: values((name) => !isWeight(name)), colour, isDots: true},
  ];
}

/**
 * Lets the line go on across layers without a value: undefined means "no point here", null would be a gap.
 *
 * @param {(number | null)[]} values
 */
function joined(values) {
  return values.map((value) => value ?? undefined);
}
