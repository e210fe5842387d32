/** One step along depth: every layer of each run in forward order, on which vanishing and exploding show as slopes. */

import {askForArray} from './api.js';
import {drawable, lineChart} from './charts.js';
import {element, themed} from './dom.js';

const LINES = ['line-strong', 'high', 'low', 'line']; // colours of runs, again from the first after the fourth

/** Draws the profile at `state.step` into `container`; returns the charts, none where another was asked for since. */
export async function showProfile(container, panels, statistic, state, isLatest) {
  const answers = await Promise.allSettled(panels.map((panel) => answerOf(panel, statistic, state.step)));
  if (!isLatest()) return [];
  const known = answers.map(({value}) => value).filter(Boolean);
  const problems = new Set(answers.filter(({reason}) => reason).map(({reason}) => reason.message));
  container.replaceChildren(...[...problems].map((problem) => element('p', {className: 'error'}, problem)));
  if (!known.length) return [];
  const order = known[0].panel.order.map((layer) => known[0].panel.overview.layers[layer]);
  const lines = known.flatMap((answer, index) =>
    linesOf(answer, order, statistic, themed(LINES[index % LINES.length]), known.length > 1),
  );
  container.append(element('p', {className: 'quiet'}, known.map(coverage).join(' ')));
  if (!lines.some(({values}) => values.some((value) => value !== null && value !== undefined))) {
    container.append(
      element('p', {className: 'quiet'}, `${statistic.label}: no layer has a finite number above 0 here.`),
    );
    return [];
  }
  const target = element('div', {className: 'chart'});
  container.append(target);
  const x = order.map((_, index) => index);
  const selected = order.indexOf(state.layer);
  return [
    lineChart(target, {
      title: `${statistic.label} along depth`,
      height: 260,
      x,
      lines,
      isLinear: statistic.isShare,
      xLabel: 'Layer',
      nameOf: (index) => order[index] ?? '',
      place: selected < 0 ? null : selected,
      syncKey: 'depth',
      sick: x.filter((index) => known.some((answer) => Math.abs(valueOf(answer, order[index])) === Infinity)),
    }),
  ];
}

async function answerOf(panel, statistic, step) {
  if (!panel.overview?.statistics.some(({name}) => name === statistic.name)) return null;
  const {header, values} = await askForArray('profile', {run: panel.run, statistic: statistic.name, step});
  return {panel, header, values, index: new Map(panel.overview.layers.map((name, layer) => [name, layer]))};
}

function coverage({panel, header: {since, step}}) {
  return since < step
    ? `${panel.run}: the row at step ${step} stands for steps ${since} to ${step}.`
    : `${panel.run}: step ${step}.`;
}

/** The highest since the row before, as the map shows it. */
function valueOf(answer, name, row = Math.max(0, answer.header.rows.indexOf('highest'))) {
  const layer = answer.index.get(name);
  return layer === undefined ? NaN : answer.values[row * answer.index.size + layer];
}

/** Weights as a line, everything else as dots beside it: biases would turn each slope into a saw. */
function linesOf(answer, order, statistic, colour, isOneOfSeveral) {
  const who = isOneOfSeveral ? `${answer.panel.run}: ` : '';
  const values = (wanted) =>
    drawable(
      order.map((name) => (wanted(name) ? valueOf(answer, name) : NaN)),
      statistic.isShare,
    );
  const isWeight = (name) => name.endsWith('weight');
  if (!order.some(isWeight)) return [{label: `${who}layers`, values: values(() => true), colour}];
  return [
    {label: `${who}weights`, values: joined(values(isWeight)), colour},
    {label: `${who}others`, values: values((name) => !isWeight(name)), colour, isDots: true},
  ];
}

/** Gaps between two values are left out of the line: undefined is "no point here", null is a gap. */
function joined(values) {
  return values.map((value) => value ?? undefined);
}
