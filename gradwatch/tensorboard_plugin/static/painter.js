/** Draws the map's cells, the step axis with its marks, and what is laid over: outlines of findings, the place looked at. */

import {stepTicks, wholeNumber} from './axis.js';
import {sized, themed} from './dom.js';
import {NOT_MEASURED, palette} from './colours.js';
import {poolPixels, rowEdges, touched} from './pooling.js';

export const AXIS_HEIGHT = 44;
const MARKS = [
  ['clipped', 3],
  ['skipped', 12],
]; // which counts, and how far below the map

/** `sheets` in order, later ones over earlier ones. */
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
  const pixels = new Uint32Array(picture.data.buffer);
  const colours = palette(rgb(themed('empty')));
  for (let index = 0; index < pixels.length; index++) pixels[index] = colours[image[index]];
  context.putImageData(picture, 0, 0);
}

/** Ticks, and clipped and skipped steps as bars below the map. */
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
    const x = toX(tick + 0.5, view, width);
    context.fillRect(Math.round(x), 22, 1, 5);
    context.textAlign = x < 20 ? 'left' : x > width - 20 ? 'right' : 'center';
    context.fillText(wholeNumber(tick), Math.min(Math.max(x, 0), width), 39);
  }
}

function paintMarks(context, sheet, kind, top, view, width) {
  sheet.header[kind].forEach((count, cell) => {
    if (!count) return;
    const left = toX(sheet.edges[cell], view, width);
    const right = toX(sheet.edges[cell + 1], view, width);
    if (right > 0 && left < width) context.fillRect(left, top, Math.max(right - left, 1.5), 7);
  });
}

/** Findings as outlines, the selected one thicker; the layer and step looked at as a cross. */
export function paintOver(canvas, outlines, place, view, rowView, width, height) {
  const context = sized(canvas, width, height);
  context.clearRect(0, 0, width, height);
  for (const {from, to, top, bottom, isSelected} of outlines) {
    const left = toX(from, view, width) - 1;
    const right = Math.max(toX(to, view, width) + 1, left + 5);
    const [upper, lower] = [top, bottom].map((row) => ((row - rowView.from) / (rowView.to - rowView.from)) * height);
    const box = [left, Math.max(upper, -9) + 1, right - left, Math.min(lower, height + 9) - Math.max(upper, -9) - 2];
    for (const [colour, thickness] of [
      ['#000', isSelected ? 5 : 3.5],
      ['#fff', isSelected ? 3 : 1.5],
    ]) {
      context.strokeStyle = colour; // white in black shows on every colour of the map
      context.lineWidth = thickness;
      context.strokeRect(...box);
    }
  }
  if (place) paintCross(context, place, view, rowView, width, height);
}

function paintCross(context, {step, row}, view, rowView, width, height) {
  context.fillStyle = themed('cross');
  if (step !== null) context.fillRect(Math.round(toX(step + 0.5, view, width)), 0, 1, height);
  if (row !== null) {
    const y = ((row + 0.5 - rowView.from) / (rowView.to - rowView.from)) * height;
    context.fillRect(0, Math.round(y), width, 1);
  }
}

function toX(step, view, width) {
  return ((step - view.from) / (view.to - view.from)) * width;
}

function rgb(hex) {
  return [1, 3, 5].map((offset) => parseInt(hex.slice(offset, offset + 2), 16));
}
