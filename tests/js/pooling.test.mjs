import assert from 'node:assert/strict';
import {test} from 'node:test';

import {poolPixels, poolRows, rowEdges, touched} from '../../gradwatch/tensorboard_plugin/static/pooling.js';
import {cellAt, Sheet} from '../../gradwatch/tensorboard_plugin/static/sheet.js';

let seed = 1;
const random = (below) => (seed = (seed * 48271) % 2147483647) % below; // the same numbers in every run

/** Computes every pixel by itself, as the highest level of all cells and rows that it touches. */
function slowly(levels, cells, layers, rows, edges, view, rowView, width, height) {
  const meets = (from, to, left, right) => from < right && to > left;
  return Uint8Array.from({length: width * height}, (_, pixel) => {
    const [x, y] = [pixel % width, Math.floor(pixel / width)];
    const at = (range, share) => range.from + (range.to - range.from) * share;
    let highest = 0;
    for (let cell = 0; cell < cells; cell++) {
      if (!meets(edges[cell], edges[cell + 1], at(view, x / width), at(view, (x + 1) / width))) continue;
      rows.forEach((members, row) => {
        if (!meets(row, row + 1, at(rowView, y / height), at(rowView, (y + 1) / height))) return;
        for (const layer of members) highest = Math.max(highest, levels[cell * layers + layer]);
      });
    }
    return highest;
  });
}

test('every pixel shows the highest level of the cells and rows that it touches', () => {
  for (let trial = 0; trial < 60; trial++) {
    const [cells, layers, width, height] = [1 + random(12), 1 + random(9), 1 + random(15), 1 + random(9)];
    const levels = Uint8Array.from({length: cells * layers}, () => random(256));
    const edges = [0];
    while (edges.length <= cells) edges.push(edges.at(-1) + 1 + random(5));
    const rows = Array.from({length: layers}, (_, layer) => [layer]);
    if (layers > 3) rows.splice(0, 2, [0, 1]);
    const from = random(edges.at(-1));
    const view = {from, to: from + 1 + random(2 * edges.at(-1))};
    const top = random(rows.length);
    const rowView = {from: top, to: top + 1 + random(rows.length - top)};
    const image = new Uint8Array(width * height);
    const lines = touched(rowEdges(rows.length), rowView.from, rowView.to, height);
    poolPixels(
      poolRows(levels, cells, layers, rows),
      cells,
      touched(edges, view.from, view.to, width),
      lines,
      width,
      height,
      image,
    );
    assert.deepEqual(image, slowly(levels, cells, layers, rows, edges, view, rowView, width, height));
  }
});

test('a spike of one step and layer shows among 20,000 × 1,000 in 700 × 500 pixels', () => {
  const [cells, layers] = [700, 1000];
  const levels = new Uint8Array(cells * layers).fill(10);
  levels[333 * layers + 777] = 200;
  const rows = Array.from({length: layers}, (_, layer) => [layer]);
  const image = new Uint8Array(700 * 500);
  const edges = Float64Array.from({length: cells + 1}, (_, cell) => (cell * 20000) / cells);
  poolPixels(
    poolRows(levels, cells, layers, rows),
    cells,
    touched(edges, 0, 20000, 700),
    touched(rowEdges(layers), 0, layers, 500),
    700,
    500,
    image,
  );
  assert.ok(image.includes(200));
});

const sheet = (values, edges, layers) =>
  new Sheet({header: {edges, shape: [edges.length - 1, layers]}, values: Float32Array.from(values)});

test('a sheet finds the cell of a step, and the highest value there', () => {
  const one = sheet([1, NaN, 5, Infinity, 3, NaN], [0, 1, 51, 101], 2);
  assert.deepEqual(
    [-1, 0, 1, 50, 51, 100, 101].map((step) => cellAt(one.edges, step)),
    [-1, 0, 1, 1, 2, 2, -1],
  );
  assert.deepEqual(one.extremeAt(0, [0, 1], false), {layer: 0, value: 1});
  assert.deepEqual(one.extremeAt(7, [0, 1], false), {layer: 1, value: Infinity});
  assert.deepEqual(one.extremeAt(0, [1], false), {layer: 1, value: NaN});
  assert.deepEqual(one.extremeAt(500, [0], false), {layer: 0, value: NaN});
  const ratios = sheet([2, 0.25, NaN], [0, 1], 3);
  assert.deepEqual(ratios.extremeAt(0, [0, 1, 2], true), {layer: 1, value: 0.25});
});

test('preparing in slices gives the same levels as pooling at once', async () => {
  const values = Array.from({length: 400 * 700}, () => 1 + random(1000));
  const edges = Array.from({length: 401}, (_, cell) => cell);
  const [rows, scale] = [
    Array.from({length: 350}, (_, row) => [2 * row, 2 * row + 1]),
    {low: 1, high: 1000, isLinear: false},
  ];
  const [prepared, atOnce] = [sheet(values, edges, 700), sheet(values, edges, 700)];
  await prepared.prepare(rows, scale);
  assert.deepEqual(prepared.pooled(rows, scale), atOnce.pooled(rows, scale));
  assert.ok(prepared.covers({from: 0, to: 400}) && !prepared.covers({from: 0, to: 401}));
});

test('rows are pooled again only when rows or scale change', () => {
  const one = sheet([1, 2, 3, 4], [0, 1, 2], 2);
  const [rows, scale] = [[[0], [1]], {low: 1, high: 4, isLinear: true}];
  const pooled = one.pooled(rows, scale);
  assert.equal(one.pooled(rows, scale), pooled);
  assert.notEqual(one.pooled([[0, 1]], scale), pooled);
  assert.deepEqual([...one.pooled([[0, 1]], {...scale})], [85, 254]);
});
