import assert from 'node:assert/strict';
import {test} from 'node:test';

import {matcher, weightsOf} from '../../gradwatch/tensorboard_plugin/static/layers.js';

const NAMES = [
  'tok.weight',
  'blocks.0.attn.q.weight',
  'blocks.0.attn.q.bias',
  'blocks.1.norm1.weight',
  'head[1].weight',
];
const found = (query) => NAMES.filter(matcher(query));

test('a search takes a part of a name in any case', () => {
  assert.deepEqual(found('ATTN.Q'), NAMES.slice(1, 3));
  assert.deepEqual(found(' '), NAMES);
});

test('a search takes globs as include= does, on the whole name, and several with commas', () => {
  assert.deepEqual(found('blocks.*.weight'), [NAMES[1], NAMES[3]]);
  assert.deepEqual(found('*.norm?.*, tok*'), [NAMES[0], NAMES[3]]);
  assert.deepEqual(found('blocks.[!1].*'), NAMES.slice(1, 3));
  assert.deepEqual(found('attn*'), []);
  assert.deepEqual(found('head[[]1].*'), [NAMES[4]]);
  assert.deepEqual(found('*('), []);
  assert.deepEqual(found('[z-a]*'), []); // no range, while somebody is still typing
});

test('weights are what is neither a bias nor part of a normalisation', () => {
  const names = ['fc.weight', 'fc.bias', 'layer_norm.weight', 'bn1.weight', 'scale.weight', 'scale.bias', 'pos'];
  assert.deepEqual(weightsOf(names, [64, 8, 8, 8, 8, 8, 32]), [true, false, false, false, false, false, true]);
  assert.deepEqual(weightsOf(['a.bias', 'b.bias'], [1, 1]), [true, true]); // better than nothing
});
