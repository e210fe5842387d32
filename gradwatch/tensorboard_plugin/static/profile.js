// @ts-check

/** Shows one step along depth: every layer of each run in forward order. Vanishing and exploding show as slopes. */

import {askForArray, messageOf} from './api.js';
import {wholeNumber} from './axis.js';
import {drawable, lineChart} from './charts.js';
import {element, themed} from './dom.js';

/** @import {ArrayAnswer, Overview, ProfileHeader, Statistic} from './api.js' */
/** @import {Line} from './charts.js' */
/** @import {Panel} from './panel.js' */
/** @import {State} from './state.js' */

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
  container.append(element('p', {className: 'quiet'}, known.map(coverage).join(' ')));
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
  const lines = answers.flatMap((answer, index) => {
    const who = answers.length > 1 ? `${answer.panel.run}: ` : '';
    return linesOf(answer, order, statistic, themed(LINES[index % LINES.length]), who);
  });
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
      xLabel: 'Layer',
      nameOf: (index) => order[index] ?? '',
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

/** @param {Answer} answer */
function coverage({panel, header: {since, step}}) {
  const {run} = panel;
  if (since === step) return `${run}: step ${wholeNumber(step)}.`;
  return `${run}: the row of step ${wholeNumber(step)}, which covers steps ${wholeNumber(since)} to ${wholeNumber(step)}.`;
}

/**
 * Returns the value of a layer as the map shows it: the highest since the row before.
 *
 * @param {Answer} answer
 * @param {string} name
 */
function valueOf(answer, name) {
  const row = Math.max(0, answer.header.rows.indexOf('highest'));
  const layer = answer.index.get(name);
  return layer === undefined ? NaN : answer.values[row * answer.index.size + layer];
}

/**
 * Returns weights as a line, and everything else as dots beside it. With biases in the line, every slope would be a saw.
 *
 * @param {Answer} answer
 * @param {string[]} order names of layers.
 * @param {Statistic} statistic
 * @param {string} colour
 * @param {string} who the run, where there are several.
 * @returns {Line[]}
 */
function linesOf(answer, order, statistic, colour, who) {
  const values = (/** @type {(name: string) => boolean} */ isWanted) =>
    drawable(
      order.map((name) => (isWanted(name) ? valueOf(answer, name) : NaN)),
      statistic.isShare,
    );
  const isWeight = (/** @type {string} */ name) => name.endsWith('weight');
  if (!order.some(isWeight)) return [{label: `${who}layers`, values: values(() => true), colour}];
  return [
    {label: `${who}weights`, values: joined(values(isWeight)), colour},
    {label: `${who}others`, values: values((name) => !isWeight(name)), colour, isDots: true},
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
