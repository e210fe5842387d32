// @ts-check

/** Draws line charts over steps or depth with uPlot. The cursors of charts over the same axis move together. */

import vendored from './vendor/uPlot.js';
import {figure} from './axis.js';
import {hatch, themed} from './dom.js';
import {hideTooltip, showTooltip} from './tooltip.js';

/** @import uPlot from 'uplot' */
/** @import {Lines} from './tooltip.js' */

/** @type {typeof uPlot} the vendored file has no types, so they come from the npm package of the same version. */
const Plot = /** @type {any} */ (vendored);

/**
 * @typedef {object} Line
 * @property {string} colour
 * @property {(number | null | undefined)[]} values null is a gap; undefined is no point, and the line goes on.
 * @property {number} [width]
 * @property {number[]} [dash]
 * @property {boolean} [isDots] draws dots in place of a line.
 */

/**
 * @typedef {object} Chart
 * @property {string} title
 * @property {number} height
 * @property {number[]} x
 * @property {Line[]} lines
 * @property {uPlot.Band[]} [bands] between two lines.
 * @property {boolean} [isLinear] from 0 to 1; otherwise the scale is logarithmic.
 * @property {(x: number) => string} [nameOf] writes a place on the x axis.
 * @property {(index: number) => {title: string, lines: Lines}} read says what lies at a place of `x`, for the tooltip.
 * @property {[number, number][]} [spans] stretches with another background.
 * @property {number[]} [sick] places marked with a red line.
 * @property {number | null} [place] the chosen place.
 * @property {string} [syncKey] charts with the same key share their cursor.
 * @property {(x: number | null) => void} [onHover]
 */

const SYNCHRONISED = 'gradwatch';
const LONGEST_NAME = 14; // characters of a tick

/**
 * Replaces values that the axis cannot show by gaps.
 *
 * @param {ArrayLike<number>} values
 * @param {boolean} isLinear
 */
export function drawable(values, isLinear) {
  return Array.from(values, (value) => (Number.isFinite(value) && (isLinear || value > 0) ? value : null));
}

/**
 * Returns the steps at which a value is infinite: a log writes that for NaN, too. A NaN in a log means "not measured".
 *
 * @param {number[]} steps
 * @param {ArrayLike<number>} values
 */
export function notFinite(steps, values) {
  return steps.filter((_, index) => Math.abs(values[index]) === Infinity);
}

/**
 * Draws `chart` into `target`.
 *
 * @param {HTMLElement} target
 * @param {Chart} chart
 */
export function lineChart(target, chart) {
  const {x, lines, spans = [], sick = [], place = null, nameOf = String} = chart;
  target.setAttribute('role', 'figure');
  target.setAttribute('aria-label', chart.title);
  /** @type {uPlot.Options} */
  const options = {
    title: chart.title,
    width: Math.max(200, target.clientWidth),
    height: chart.height,
    scales: {x: {time: false}, y: chart.isLinear ? {range: [0, 1]} : {distr: 3}},
    cursor: {sync: {key: chart.syncKey ?? SYNCHRONISED, setSeries: false}, drag: {x: false, y: false}},
    legend: {show: false},
    axes: axesOf(nameOf),
    series: [{}, ...lines.map((line) => seriesOf(line, x.length))],
    bands: chart.bands ?? [],
    hooks: {
      drawClear: [(plot) => spans.forEach(([from, to]) => shade(plot, from, to, themed('span')))],
      draw: [
        (plot) => {
          const hatched = hatch(plot.ctx);
          sick.forEach((each) => shade(plot, each, each, hatched, 2));
          if (place !== null) shade(plot, place, place, themed('cross'), 1);
        },
      ],
      setCursor: [({cursor: {idx}}) => chart.onHover?.(idx === null || idx === undefined ? null : x[idx])],
    },
  };
  const plot = new Plot(options, [x, ...lines.map(({values}) => values)], target);
  followMouse(plot, chart);
  return plot;
}

/**
 * Shows a tooltip at the mouse.
 *
 * @param {uPlot} plot
 * @param {Chart} chart
 */
function followMouse({over, posToIdx}, {read}) {
  over.addEventListener('mousemove', ({clientX, clientY}) => {
    const {title, lines} = read(posToIdx(clientX - over.getBoundingClientRect().left));
    showTooltip(clientX, clientY, title, lines);
  });
  over.addEventListener('mouseleave', hideTooltip);
}

/**
 * @param {(x: number) => string} nameOf
 * @returns {uPlot.Axis[]}
 */
function axesOf(nameOf) {
  const axis = {
    stroke: themed('quiet'),
    grid: {stroke: themed('grid'), width: 1},
    ticks: {stroke: themed('grid')},
    font: '11px sans-serif',
  };
  const name = (/** @type {number} */ tick) => (Number.isInteger(tick) ? shortened(nameOf(tick)) : '');
  const number = (/** @type {number | null} */ tick) => (tick === null ? '' : figure(tick));
  return [
    {...axis, values: (_, ticks) => ticks.map(name)},
    {...axis, size: 64, values: (_, ticks) => ticks.map(number)},
  ];
}

/**
 * @param {Line} line
 * @param {number} length of the line, in points.
 * @returns {uPlot.Series}
 */
function seriesOf({colour, width = 1.5, dash, isDots = false}, length) {
  return {
    stroke: colour,
    width: isDots ? 0 : width,
    dash,
    ...(isDots
      ? {paths: () => null, points: {show: true, size: 4, fill: colour}}
      : {points: {show: length < 60, size: 4}}),
  };
}

/** @param {string} name */
function shortened(name) {
  return name.length > LONGEST_NAME ? `…${name.slice(1 - LONGEST_NAME)}` : name;
}

/**
 * Draws a vertical band over the plot.
 *
 * @param {uPlot} plot
 * @param {number} from
 * @param {number} to
 * @param {string | CanvasPattern} colour
 * @param {number} least pixels.
 */
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
