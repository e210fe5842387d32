import assert from 'node:assert/strict';
import {test} from 'node:test';

import {byCause, inWords} from '../../gradwatch/tensorboard_plugin/static/findings.js';
import {severityOf, sharedLength, verdictInWords, worstFirst} from '../../gradwatch/tensorboard_plugin/static/runs.js';

test('what was measured has its unit and its limit', () => {
  const words = (kind, value, threshold, more = {}) => inWords({kind, layer: 'a', value, threshold, ...more});
  assert.equal(words('exploding', 48.2, 2), '48.2 × its level (limit 2 ×)');
  assert.equal(words('exploding', null, 2), 'the gradient norm overflows');
  assert.equal(words('exploding', 9, 2, {figure: 'its update is 9 times its size'}), 'its update is 9 times its size');
  assert.equal(words('dead', 0.987, 0.9), '98.7 % of its units are dead (limit 90 %)');
  assert.equal(words('nonfinite', 3, 0), '3 entries are NaN or Inf');
  assert.equal(words('nonfinite', 1, 0, {layer: ''}), 'the loss is NaN or Inf');
  assert.equal(words('vanishing', 1e-9, 1e-6), 'gradient norm 1e-9 (limit 1e-6)');
});

test('a consequence comes below what led to it', () => {
  const findings = [null, null, 0, 2, null, 1].map((follows) => ({follows}));
  assert.deepEqual(
    byCause(findings).map(({index, level}) => [index, level]),
    [
      [0, 0],
      [2, 1],
      [3, 2],
      [1, 0],
      [5, 1],
      [4, 0],
    ],
  );
});

test('the worst run comes first, and numbers in names count as numbers', () => {
  const found = (...severities) => ({findings: severities.map((severity) => ({severity})), problems: []});
  const answers = {a10: found(), a2: found(), w: found('warning', 'warning'), e: found('error'), w1: found('warning')};
  assert.deepEqual(worstFirst(Object.keys(answers), answers), ['e', 'w', 'w1', 'a2', 'a10']);
  assert.deepEqual(worstFirst(['unknown'], {}), ['unknown']);
});

test('a run of which not all is known is not called healthy', () => {
  const gap = {findings: [], problems: [], steps: 200, unmeasured: 30};
  assert.equal(severityOf(gap), 'unknown');
  assert.equal(verdictInWords(gap), 'no findings in what is known: 30 of 200 steps not measured');
  assert.deepEqual(worstFirst(['a', 'b'], {a: {findings: [], problems: []}, b: gap}), ['b', 'a']);
  assert.equal(severityOf({...gap, unmeasured: 0}), 'healthy');
  assert.equal(severityOf({...gap, unmeasured: 0, lost: {row: 1}}), 'unknown');
  const unjudged = 'not looked for, of 200 steps: dead by the rule Dead at 9';
  assert.equal(severityOf({...gap, unmeasured: 0, unjudged}), 'unknown');
  assert.equal(verdictInWords({...gap, unmeasured: 0, unjudged}), `no findings in what is known: ${unjudged}`);
  assert.equal(
    verdictInWords({...gap, lost: {row: 1}}),
    'no findings in what is known: 30 of 200 steps not measured; a part could not be written',
  );
});

test('what all names begin with is dropped, up to a separator', () => {
  assert.equal(sharedLength(['sweep/lr=0.1', 'sweep/lr=0.12']), 'sweep/lr='.length);
  assert.equal(sharedLength(['run_a', 'run_b']), 4);
  assert.equal(sharedLength(['a', 'ab']), 0);
  assert.equal(sharedLength(['x/', 'x/y']), 0); // something must be left of each
  assert.equal(sharedLength(['alone/run']), 0);
});
