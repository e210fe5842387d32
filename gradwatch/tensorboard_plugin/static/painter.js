// @ts-check

/** Draws the cells of the map, the axis of steps below it, and over it the outlines of findings and the chosen place. */

import {stepTicks, wholeNumber} from './axis.js';
import {isDark, sized, themed} from './dom.js';
import {diverging, NOT_FINITE, NOT_MEASURED, palette, pixel, rgb, shade} from './colours.js';
import {poolPixels, rowEdges, touched} from './pooling.js';

/** @import {Scale} from './colours.js' */
/** @import {Outline} from './outlines.js' */
/** @import {Sheet} from './sheet.js' */
/** @import {View} from './view.js' */

export const AXIS_HEIGHT = 50;

const [HATCH_APART, HATCH_WIDE] = [9, 1]; // pixels of the screen
const NUMBER_WIDTH = 16;

/** @type {['clipped' | 'skipped', number][]} what is counted, and how far below the map its bars lie. */
const MARKS = [
  ['clipped', 4],
  ['skipped', 17],
];
const MARK_HEIGHT = 7; // the style sheet puts the names of the bars beside them, 13 pixels each

/**
 * Draws `sheets` in their order: later ones cover earlier ones.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {Sheet[]} sheets
 * @param {number[][]} rows the layers of each row, as indices.
 * @param {Scale | null} scale
 * @param {View} view steps
 * @param {View} rowView
 * @param {number} width
 * @param {number} height
 */
export function paintCells(canvas, sheets, rows, scale, view, rowView, width, height) {
  const context = sized(canvas, width, height);
  const [across, down] = [canvas.width, canvas.height];
  const image = new Uint8Array(across * down).fill(NOT_MEASURED);
  const lines = touched(rowEdges(rows.length), rowView.from, rowView.to, down);
  for (const sheet of sheets) {
    const columns = touched(sheet.edges, view.from, view.to, across);
    poolPixels(sheet.pooled(rows, scale), sheet.cells, columns, lines, across, down, image);
  }
  const picture = context.createImageData(across, down);
  colour(new Uint32Array(picture.data.buffer), image, across, scale?.isRatio ?? false);
  context.putImageData(picture, 0, 0);
}

/**
 * Writes the colours of levels; what is not finite gets a pale hatch.
 *
 * @param {Uint32Array} pixels
 * @param {Uint8Array} image levels.
 * @param {number} width
 * @param {boolean} isRatio
 */
function colour(pixels, image, width, isRatio) {
  const dark = isDark();
  const colourAt = isRatio ? (/** @type {number} */ position) => diverging(position, dark) : shade;
  const colours = palette(rgb(themed('empty')), rgb(themed('hatch')), colourAt, isRatio);
  const line = pixel(rgb(themed('hatch-line')));
  for (let index = 0; index < pixels.length; index++) pixels[index] = colours[image[index]];
  for (let index = image.indexOf(NOT_FINITE); index >= 0; index = image.indexOf(NOT_FINITE, index + 1)) {
    const [x, y] = [index % width, Math.floor(index / width)];
    if ((x + y) % HATCH_APART < HATCH_WIDE) pixels[index] = line;
  }
}

/**
 * Draws ticks below the map, and a bar for each stretch of clipped or skipped steps.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {Sheet[]} sheets
 * @param {View} view steps
 * @param {number} width
 */
export function paintAxis(canvas, sheets, view, width) {
  const context = sized(canvas, width, AXIS_HEIGHT);
  context.clearRect(0, 0, width, AXIS_HEIGHT);
  for (const [kind, top] of MARKS) {
    context.fillStyle = themed(kind);
    for (const sheet of sheets) paintMarks(context, sheet, kind, top, view, width);
  }
  context.fillStyle = context.strokeStyle = themed('quiet');
  context.font = '11px sans-serif';
  for (const tick of stepTicks(view.from, view.to - 1, width / 90)) {
    const x = toPixel(tick + 0.5, view, width);
    context.fillRect(Math.round(x), 28, 1, 5);
    context.textAlign = x < 20 ? 'left' : x > width - 20 ? 'right' : 'center';
    context.fillText(wholeNumber(tick), Math.min(Math.max(x, 0), width), 45);
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Sheet} sheet
 * @param {'clipped' | 'skipped'} kind
 * @param {number} top
 * @param {View} view
 * @param {number} width
 */
function paintMarks(context, sheet, kind, top, view, width) {
  sheet.header[kind].forEach((count, cell) => {
    if (!count) return;
    const left = toPixel(sheet.edges[cell], view, width);
    const right = toPixel(sheet.edges[cell + 1], view, width);
    if (right > 0 && left < width) context.fillRect(left, top, Math.max(right - left, 1.5), MARK_HEIGHT);
  });
}

/**
 * Draws findings as outlines with their numbers, the selected one thicker, and a line through the chosen row.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {Outline[]} outlines
 * @param {number | null} row
 * @param {View} view steps
 * @param {View} rowView
 * @param {number} width
 * @param {number} height
 */
export function paintOver(canvas, outlines, row, view, rowView, width, height) {
  const context = sized(canvas, width, height);
  context.clearRect(0, 0, width, height);
  const boxes = outlines.map((outline) => boxOf(outline, view, rowView, width, height));
  boxes.forEach((box, index) => paintBox(context, box, outlines[index].isSelected));
  paintNumbers(context, outlines, boxes, width);
  if (row === null) return;
  context.fillStyle = themed('cross');
  context.fillRect(0, Math.round(toPixel(row + 0.5, rowView, height)), width, 1);
}

/** @typedef {{left: number, right: number, top: number, bottom: number}} Pixels */

/**
 * @param {Outline} outline
 * @param {View} view
 * @param {View} rowView
 * @param {number} width
 * @param {number} height
 * @returns {Pixels}
 */
function boxOf({from, to, top, bottom}, view, rowView, width, height) {
  const left = toPixel(from, view, width) - 1;
  const [upper, lower] = [top, bottom].map((row) => toPixel(row, rowView, height));
  return {
    left,
    right: Math.max(toPixel(to, view, width) + 1, left + 5),
    top: Math.max(upper, -9) + 1,
    bottom: Math.min(lower, height + 9) - 1,
  };
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Pixels} box
 * @param {boolean} isSelected
 */
function paintBox(context, {left, right, top, bottom}, isSelected) {
  // A white line within a black one shows on every colour of the map.
  context.strokeStyle = '#000';
  context.lineWidth = isSelected ? 5 : 3.5;
  context.strokeRect(left, top, right - left, bottom - top);
  context.strokeStyle = '#fff';
  context.lineWidth = isSelected ? 3 : 1.5;
  context.strokeRect(left, top, right - left, bottom - top);
}

/**
 * Draws the number of each finding left of its outline, or within it where there is no room. Numbers of neighbours lie side
 * by side.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {Outline[]} outlines
 * @param {Pixels[]} boxes of the outlines.
 * @param {number} width
 */
function paintNumbers(context, outlines, boxes, width) {
  /** @type {[number, number][]} */
  const taken = [];
  outlines.forEach(({number}, index) => {
    const {left, right, top, bottom} = boxes[index];
    if (number === null || right <= 0 || left >= width || bottom <= top) return;
    const y = Math.max(top, 0) + 9;
    let x = Math.min(left > 22 ? left - 11 : Math.max(left, 0) + 11, width - 11);
    const isTaken = () => taken.some(([across, down]) => Math.hypot(across - x, down - y) < NUMBER_WIDTH);
    while (isTaken() && x + NUMBER_WIDTH < width) x += NUMBER_WIDTH;
    taken.push([x, y]);
    paintNumber(context, number, x, y);
  });
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number} number
 * @param {number} x
 * @param {number} y
 */
function paintNumber(context, number, x, y) {
  context.fillStyle = '#000';
  context.beginPath();
  context.arc(x, y, NUMBER_WIDTH / 2, 0, 2 * Math.PI);
  context.fill();
  context.fillStyle = '#fff';
  context.font = 'bold 11px sans-serif';
  context.textAlign = 'center';
  context.fillText(String(number), x, y + 4);
}

/**
 * Returns the pixel of a step or a row, among `length` pixels for the whole view.
 *
 * @param {number} place
 * @param {View} view
 * @param {number} length
 */
export function toPixel(place, view, length) {
  return ((place - view.from) / (view.to - view.from)) * length;
}
