import assert from 'node:assert/strict';
import {test} from 'node:test';

import {zoomOf} from '../../gradwatch/tensorboard_plugin/static/gestures.js';

const turn = (deltaY, more = {}) => zoomOf({deltaX: 0, deltaY, deltaMode: 0, ctrlKey: false, ...more});

test('the wheel zooms in proportion to its delta: 30 turns by 3 pixels are one by 90', () => {
  assert.ok(Math.abs(turn(-3) ** 30 - turn(-90)) < 1e-9);
  assert.ok(turn(-90) > 0.8);
  assert.ok(turn(100) > 1);
  assert.equal(turn(0), 1);
});

test('lines and pages are turned into pixels, one event is limited, a pinch zooms faster', () => {
  assert.equal(turn(3, {deltaMode: 1}), turn(48));
  assert.equal(turn(1, {deltaMode: 2}), turn(1e9));
  assert.ok(turn(5, {ctrlKey: true}) > turn(20));
});
