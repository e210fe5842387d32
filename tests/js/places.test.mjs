import {test} from 'node:test';
import assert from 'node:assert/strict';

import {statisticOf} from '../../gradwatch/tensorboard_plugin/static/places.js';

const overview = (...names) => ({statistics: names.map((name) => ({name}))});
const panel = (kinds, ...names) => ({findings: kinds.map((kind) => ({kind})), overview: overview(...names)});
const ALL = ['grad_ratio', 'grad_rms', 'dead_share'];

test('a map shows the statistic that the first finding was measured in', () => {
  assert.equal(statisticOf([panel(['vanishing'], ...ALL)]), 'grad_rms');
  assert.equal(statisticOf([panel(['dead', 'vanishing'], ...ALL)]), 'dead_share');
  assert.equal(statisticOf([panel([], ...ALL), panel(['dead'], ...ALL)]), 'dead_share');
});

test('a map shows norms beside their median where nothing asks for more', () => {
  assert.equal(statisticOf([]), 'grad_ratio');
  assert.equal(statisticOf([panel([], ...ALL)]), 'grad_ratio');
  assert.equal(statisticOf([panel(['exploding', 'vanishing'], ...ALL)]), 'grad_ratio');
});

test('no map is without a statistic because another run was found sick by it', () => {
  assert.equal(statisticOf([panel(['dead'], ...ALL), panel([], 'grad_ratio')]), 'grad_ratio');
  assert.equal(statisticOf([panel(['dead'], ...ALL), {findings: [], overview: null}]), 'dead_share');
});
