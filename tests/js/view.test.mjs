import assert from 'node:assert/strict';
import {test} from 'node:test';

import {counted, figure, stepTicks, wholeNumber} from '../../gradwatch/tensorboard_plugin/static/axis.js';
import {duration, keyOf} from '../../gradwatch/tensorboard_plugin/static/findings.js';
import {drawable, notFinite} from '../../gradwatch/tensorboard_plugin/static/charts.js';
import {around, panned, zoomed} from '../../gradwatch/tensorboard_plugin/static/view.js';

const BOUNDS = {from: 0, to: 1000};

test('zooming keeps the step under the mouse where it is', () => {
  assert.deepEqual(zoomed(BOUNDS, 0.5, 250, BOUNDS, 5), {from: 125, to: 625});
  assert.deepEqual(zoomed({from: 100, to: 200}, 0.5, 100, BOUNDS, 5), {from: 100, to: 150});
});

test('no view is wider than the run or narrower than the limit', () => {
  assert.deepEqual(zoomed({from: 100, to: 900}, 4, 500, BOUNDS, 5), BOUNDS);
  assert.deepEqual(zoomed({from: 100, to: 106}, 0.1, 103, BOUNDS, 5), {from: 100.5, to: 105.5});
  assert.deepEqual(zoomed({from: 0, to: 3}, 0.5, 1, {from: 0, to: 3}, 5), {from: 0, to: 3});
});

test('a view stays within the run', () => {
  assert.deepEqual(panned({from: 0, to: 100}, -50, BOUNDS), {from: 0, to: 100});
  assert.deepEqual(panned({from: 850, to: 950}, 300, BOUNDS), {from: 900, to: 1000});
  assert.deepEqual(around(10, 20, 50, BOUNDS), {from: 0, to: 111});
  assert.deepEqual(around(10, 2000, 50, BOUNDS), BOUNDS);
});

test('ticks are round, whole and not too many', () => {
  assert.deepEqual(stepTicks(0, 299, 6), [0, 50, 100, 150, 200, 250]);
  assert.deepEqual(stepTicks(7, 9, 10), [7, 8, 9]);
  assert.deepEqual(stepTicks(3, 3, 10), [3]);
  assert.ok(stepTicks(1234567, 9876543, 8).length <= 10);
});

test('numbers read as people write them', () => {
  assert.deepEqual([0, 1.2345, 0.00123, 12345, 4.56e-9, 1e-20, NaN, Infinity, null].map(figure), [
    '0',
    '1.23',
    '0.00123',
    '1.23e4',
    '4.56e-9',
    '1e-20',
    'not measured',
    'NaN, Inf or overflow',
    'not a finite number',
  ]);
  assert.equal(wholeNumber(1234567), '1,234,567');
  assert.deepEqual(
    [0, 1, 1200].map((count) => counted(count, 'layer')),
    ['0 layers', '1 layer', '1,200 layers'],
  );
});

test('a chart has gaps where its axis cannot show a value', () => {
  assert.deepEqual(drawable([1, 0, NaN, Infinity, -1], false), [1, null, null, null, null]);
  assert.deepEqual(drawable([1, 0, NaN], true), [1, 0, null]);
  assert.deepEqual(notFinite([10, 20, 30], [1, Infinity, NaN]), [20]);
});

test('a finding says how long it lasted, and its key is unique', () => {
  assert.equal(duration({step: 12, last_step: 57, ended: true}), 'steps 12 to 57');
  assert.equal(duration({step: 1200, last_step: 1200, ended: true}), 'step 1,200');
  assert.equal(duration({step: 12, last_step: 12, ended: false}), 'since step 12, still open');
  const open = duration({step: 12, last_step: 12, ended: false}, 3000);
  assert.equal(open, 'since step 12, still open at the last logged step, 3,000');
  assert.notEqual(keyOf('a|b', {kind: 'c', layer: 'd', step: 1}), keyOf('a', {kind: 'b|c', layer: 'd', step: 1}));
});
