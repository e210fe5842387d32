import assert from 'node:assert/strict';
import {test} from 'node:test';

import {
  allModules,
  layOut,
  modulesAround,
  openedAtFirst,
  treeOf,
} from '../../gradwatch/tensorboard_plugin/static/tree.js';
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
  const tree = treeOf(NAMES, DEPTH);
  const {rows, boxes} = layOut(tree, allModules(tree));
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
  const tree = treeOf(NAMES, DEPTH);
  const {boxes} = layOut(tree, allModules(tree));
  assert.deepEqual(
    boxes.filter(({level}) => level === 1).map(({node}) => node.name),
    ['0.fc', '1.fc', 'weight', 'bias'],
  );
});

test('a closed module is one row of all its layers', () => {
  const {rows} = layOut(treeOf(NAMES, DEPTH), new Set(['head']));
  assert.deepEqual(named(rows), [NAMES.slice(1, 5).join(' '), 'head.weight', 'head.bias']);
});

test('only layers that are wanted have rows', () => {
  const tree = treeOf(NAMES, DEPTH, (layer) => NAMES[layer].endsWith('fc.bias'));
  assert.deepEqual(named(layOut(tree, allModules(tree)).rows), ['blocks.0.fc.bias', 'blocks.1.fc.bias']);
  assert.deepEqual(
    layOut(
      treeOf(NAMES, DEPTH, () => false),
      new Set(),
    ),
    {rows: [], boxes: []},
  );
});

test('a small network opens whole, a transformer as its blocks, and blocks that are very many all the same', () => {
  const small = treeOf(NAMES, DEPTH);
  assert.deepEqual(openedAtFirst(small), allModules(small));
  for (const [blocks, rows] of [
    [12, 13],
    [125, 126],
  ]) {
    const parts = ['attn.q.weight', 'attn.k.weight', 'up.weight', 'down.weight'];
    const names = Array.from({length: blocks}, (_, block) => parts.map((part) => `blocks.${block}.${part}`)).flat();
    names.push('head.weight');
    const tree = treeOf(
      names,
      names.map((_, index) => index),
    );
    assert.equal(layOut(tree, openedAtFirst(tree)).rows.length, rows);
  }
});

test('odd names stay layers: names of object properties, of modules, and empty ones', () => {
  const odd = ['constructor', '__proto__.weight', 'a', 'a.weight', '', '..'];
  const {rows} = layOut(
    treeOf(
      odd,
      odd.map((_, index) => index),
    ),
    new Set(['__proto__', 'a']),
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
