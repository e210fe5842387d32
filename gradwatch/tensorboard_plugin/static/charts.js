/** uPlot as the tab uses it: a line chart over steps or depth whose cursors move together. */

import uPlot from './vendor/uPlot.js';
import {figure} from './axis.js';
import {themed} from './dom.js';

const SYNCHRONISED = 'gradwatch';

/** Values that a logarithmic axis can show: others are gaps. */
export function drawable(values, isLinear) {
  return Array.from(values, (value) => (Number.isFinite(value) && (isLinear || value > 0) ? value : null));
}

/** Steps at which a value is NaN or Inf rather than not measured. */
export function notFinite(steps, values) {
  return steps.filter((_, index) => Math.abs(values[index]) === Infinity);
}

/**
 * @param {HTMLElement} target
 * @param {object} chart {title, height, x, lines: [{label, values, colour, width, dash, points}], bands, isLinear,
 *   nameOf(x), spans: [[from, to]], sick: [x], place: x or null, onHover(x)}
 */
export function lineChart(target, chart) {
  const {x, lines, isLinear = false, bands = [], nameOf = (value) => String(value)} = chart;
  const quiet = themed('quiet');
  target.setAttribute('role', 'figure');
  target.setAttribute('aria-label', chart.title);
  const axis = {
    stroke: quiet,
    grid: {stroke: themed('grid'), width: 1},
    ticks: {stroke: themed('grid')},
    font: '11px sans-serif',
  };
  const options = {
    title: chart.title,
    width: Math.max(200, target.clientWidth),
    height: chart.height,
    scales: {x: {time: false}, y: isLinear ? {range: [0, 1]} : {distr: 3}},
    cursor: {sync: {key: chart.syncKey ?? SYNCHRONISED, setSeries: false}, drag: {x: false, y: false}},
    legend: {live: true},
    axes: [
      {...axis, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? shortened(nameOf(tick)) : ''))},
      {...axis, size: 64, values: (_, ticks) => ticks.map((tick) => (tick === null ? '' : figure(tick)))},
    ],
    series: [
      {label: chart.xLabel ?? 'Step', value: (_, value) => (value === null ? '–' : nameOf(value))},
      ...lines.map(({label, colour, width = 1.5, dash, isDots = false}) => ({
        label,
        stroke: colour,
        width: isDots ? 0 : width,
        dash,
        ...(isDots
          ? {paths: () => null, points: {show: true, size: 4, fill: colour}}
          : {points: {show: x.length < 60, size: 4}}),
        value: (_, value) => (value === null ? '–' : figure(value)),
      })),
    ],
    bands,
    hooks: {
      drawClear: [(plot) => (chart.spans ?? []).forEach(([from, to]) => shade(plot, from, to, themed('span')))],
      draw: [
        (plot) => {
          (chart.sick ?? []).forEach((each) => shade(plot, each, each, themed('sick'), 2));
          if (chart.place !== null && chart.place !== undefined)
            shade(plot, chart.place, chart.place, themed('cross'), 1);
        },
      ],
      setCursor: [(plot) => chart.onHover?.(plot.cursor.idx === null ? null : x[plot.cursor.idx])],
    },
  };
  return new uPlot(options, [x, ...lines.map(({values}) => values)], target);
}

function shortened(name) {
  return name.length > 14 ? `…${name.slice(-13)}` : name;
}

/** A vertical band over the plot from `from` to `to`. */
function shade(plot, from, to, colour, least = 2) {
  const {ctx, bbox} = plot;
  const left = Math.max(plot.valToPos(from, 'x', true), bbox.left);
  const right = Math.min(Math.max(plot.valToPos(to, 'x', true), left + least), bbox.left + bbox.width);
  if (right < bbox.left || left > bbox.left + bbox.width) return;
  ctx.save();
  ctx.fillStyle = colour;
  ctx.fillRect(left, bbox.top, right - left, bbox.height);
  ctx.restore();
}
