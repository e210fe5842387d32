import assert from 'node:assert/strict';
import {test} from 'node:test';

import {ask, askForArray, unpack} from '../../gradwatch/tensorboard_plugin/static/api.js';

function packed(header, values) {
  let text = JSON.stringify(header);
  text += ' '.repeat((4 - (text.length % 4)) % 4);
  const bytes = new Uint8Array(4 + text.length + 4 * values.length);
  new DataView(bytes.buffer).setUint32(0, text.length, true);
  bytes.set(new TextEncoder().encode(text), 4);
  bytes.set(new Uint8Array(Float32Array.from(values).buffer), 4 + text.length);
  return bytes.buffer;
}

test('an array comes with its header, NaN and Inf among its numbers', () => {
  const {header, values} = unpack(packed({shape: [2, 2], edges: [0, 1, 2]}, [1.5, NaN, Infinity, 0]));
  assert.deepEqual(header.edges, [0, 1, 2]);
  assert.deepEqual([...values], [1.5, NaN, Infinity, 0]);
});

test('an array of another length than declared is refused', () => {
  assert.throws(() => unpack(packed({shape: [3]}, [1])), /expected 3 numbers, received 1/);
});

test('addresses are relative and names are escaped', async () => {
  let asked;
  globalThis.fetch = async (address) => ((asked = address), new Response('{"a": 1}'));
  assert.deepEqual(await ask('overview', {run: 'a&b/../c d'}), {a: 1});
  assert.equal(asked, './overview?run=a%26b%2F..%2Fc+d');
  await ask('runs');
  assert.equal(asked, './runs');
});

test('an error has the words of the server', async () => {
  globalThis.fetch = async () => new Response('{"error": "gradwatch/layers is missing"}', {status: 422});
  await assert.rejects(askForArray('cells', {}), /^Error: gradwatch\/layers is missing$/);
  globalThis.fetch = async () => new Response('<h1>Bad gateway</h1>', {status: 502});
  await assert.rejects(ask('runs'), /status 502/);
  globalThis.fetch = async () => {
    throw new TypeError('refused');
  };
  await assert.rejects(ask('runs'), /Is it still running/);
});
