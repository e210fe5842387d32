import {test} from 'node:test';
import assert from 'node:assert/strict';

import {placesOfNames} from '../../gradwatch/tensorboard_plugin/static/placement.js';
import {allModules, layOut, treeOf} from '../../gradwatch/tensorboard_plugin/static/tree.js';

const NAMES = Array.from({length: 200}, (_, index) => `blocks.${index >> 1}.${index % 2 ? 'b' : 'a'}.weight`);
const tree = treeOf(
  NAMES,
  NAMES.map((_, index) => index),
);
const {boxes} = layOut(tree, allModules(tree));
const whole = {from: 0, to: 200};
const pathsOf = (places) => places.map(({box}) => box.node.path);

test('every box that is high enough has its name', () => {
  const places = placesOfNames(boxes, whole, 200 * 12, () => false);
  assert.equal(places.length, boxes.length);
  assert.ok(places.every(({isLow}) => !isLow));
});

test('of boxes that are too low as many have a name as have room, and none covers another', () => {
  const places = placesOfNames(boxes, whole, 400, () => false); // 2 pixels a row, 4 a block
  const [root, ...blocks] = places;
  assert.equal(root.box.node.path, 'blocks');
  assert.ok(root.hasInner);
  assert.ok(blocks.length > 15 && blocks.length <= 400 / 15);
  assert.ok(blocks.every(({box}) => box.level === 1));
  blocks.slice(1).forEach(({top}, index) => assert.ok(top >= blocks[index].bottom));
});

test('a sick row has its name wherever it lies, with what no module beside it says', () => {
  const sick = 'blocks.57.b.weight';
  const places = placesOfNames(boxes, whole, 400, ({node}) => node.path === sick);
  const {name, level} = places.find(({box}) => box.node.path === sick);
  assert.deepEqual([name, level], ['57.b.weight', 1]);
  assert.ok(!pathsOf(places).includes('blocks.57'));
});

test('boxes out of view have no name', () => {
  const places = placesOfNames(boxes, {from: 100, to: 104}, 400, () => false);
  assert.deepEqual(
    pathsOf(places).filter((path) => /^blocks\.\d+$/.test(path)),
    ['blocks.50', 'blocks.51'],
  );
});
