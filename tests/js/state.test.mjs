import assert from 'node:assert/strict';
import {test} from 'node:test';

import {hashWith, parametersIn} from '../../gradwatch/tensorboard_plugin/static/host.js';
import {DEFAULTS, fromParameters, toParameters} from '../../gradwatch/tensorboard_plugin/static/state.js';

const CHOSEN = {
  runs: ['a, b', 'ü/&='],
  statistic: 'weight_norm',
  scale: 'clamp',
  rows: 'all',
  layer: '<img src=x>.weight',
  step: 12,
  finding: '["a","dead","x",1]',
  from: 3,
  to: 99,
};

test('an address brings back what was chosen', () => {
  const hash = hashWith('#gradwatch&tagFilter=x', toParameters(CHOSEN));
  assert.ok(hash.startsWith('#gradwatch&tagFilter=x&p.gradwatch.'));
  assert.deepEqual(fromParameters(parametersIn(hash)), CHOSEN);
  assert.equal(hashWith(hash, {}), '#gradwatch&tagFilter=x');
});

test('the address leaves out default values', () => {
  assert.deepEqual(toParameters(DEFAULTS), {});
  assert.deepEqual(fromParameters({}), DEFAULTS);
});

test('parts of an address that cannot be read get their default values', () => {
  const odd = {
    scale: 'toString',
    rows: '',
    runs: '{"a": 1}',
    step: '-1',
    from: '9',
    to: '3',
    constructor: 'x',
    __proto__: 'y',
    unknown: 'z',
  };
  assert.deepEqual(fromParameters(odd), DEFAULTS);
  assert.deepEqual(fromParameters({runs: '[1]', step: '1e3', from: '5'}), DEFAULTS);
  assert.deepEqual(parametersIn('#gradwatch&p.gradwatch.layer=%E0%A4%A&p.other.layer=x'), {});
});
