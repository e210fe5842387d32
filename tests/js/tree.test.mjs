import assert from 'node:assert/strict';
import {test} from 'node:test';

import {layOut, modulesAround, treeOf} from '../../gradwatch/tensorboard_plugin/static/tree.js';
import {stretches} from '../../gradwatch/tensorboard_plugin/static/outlines.js';

const NAMES = [
  'head.bias',
  'blocks.0.fc.weight',
  'blocks.0.fc.bias',
  'blocks.1.fc.weight',
  'blocks.1.fc.bias',
  'head.weight',
];
const DEPTH = [5, 0, 1, 2, 3, 4];
const named = (rows) => rows.map((layers) => layers.map((layer) => NAMES[layer]).join(' '));

test('rows follow the forward order, grouped by module', () => {
  const {rows, boxes} = layOut(treeOf(NAMES, DEPTH), new Set());
  assert.deepEqual(named(rows), [...NAMES.slice(1), NAMES[0]]);
  assert.deepEqual(
    boxes.filter(({isGroup}) => isGroup).map(({node, top, bottom}) => [node.path, top, bottom]),
    [
      ['blocks', 0, 4],
      ['blocks.0.fc', 0, 2],
      ['blocks.1.fc', 2, 4],
      ['head', 4, 6],
    ],
  );
});

test('a module whose only child is a module shares a box with it', () => {
  const {boxes} = layOut(treeOf(NAMES, DEPTH), new Set());
  assert.deepEqual(
    boxes.filter(({level}) => level === 1).map(({node}) => node.name),
    ['0.fc', '1.fc', 'weight', 'bias'],
  );
});

test('a closed module is one row of all its layers', () => {
  const {rows} = layOut(treeOf(NAMES, DEPTH), new Set(['blocks']));
  assert.deepEqual(named(rows), [NAMES.slice(1, 5).join(' '), 'head.weight', 'head.bias']);
});

test('a search keeps the layers whose names hold the query, in any case', () => {
  const tree = treeOf(NAMES, DEPTH, 'FC.B');
  assert.deepEqual(named(layOut(tree, new Set()).rows), ['blocks.0.fc.bias', 'blocks.1.fc.bias']);
  assert.deepEqual(layOut(treeOf(NAMES, DEPTH, 'nothing'), new Set()), {rows: [], boxes: []});
});

test('odd names stay layers: names of object properties, of modules, and empty ones', () => {
  const odd = ['constructor', '__proto__.weight', 'a', 'a.weight', '', '..'];
  const {rows} = layOut(
    treeOf(
      odd,
      odd.map((_, index) => index),
    ),
    new Set(),
  );
  assert.deepEqual(rows.flat(), [0, 1, 2, 3, 4, 5]);
});

test('the modules around a layer can be opened', () => {
  assert.deepEqual(modulesAround(treeOf(NAMES, DEPTH), 3), ['blocks', 'blocks.1.fc']);
});

test('neighbouring rows of a finding are one box', () => {
  assert.deepEqual(stretches([5, 1, 2, 3, 3, 7]), [
    [1, 4],
    [5, 6],
    [7, 8],
  ]);
  assert.deepEqual(stretches([]), []);
});
