import assert from 'node:assert/strict';
import {test} from 'node:test';

import {
  commonScale,
  levels,
  NOT_FINITE,
  NOT_FINITE_COLOUR,
  NOT_MEASURED,
  palette,
  shade,
  SHADES,
  share,
} from '../../gradwatch/tensorboard_plugin/static/colours.js';

const SCALE = {low: 1e-8, high: 1, isLinear: false};

// What people see with each kind of colour blindness, in linear light (Machado, Oliveira and Fernandes, 2009).
const SIGHTS = {
  all: [
    [1, 0, 0],
    [0, 1, 0],
    [0, 0, 1],
  ],
  protanopia: [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  deuteranopia: [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.01182, 0.04294, 0.968881],
  ],
  tritanopia: [
    [1.255528, -0.076749, -0.178779],
    [-0.078411, 0.930809, 0.147602],
    [0.004733, 0.691367, 0.3039],
  ],
};
const TO_XYZ = [
  [0.4124, 0.3576, 0.1805],
  [0.2126, 0.7152, 0.0722],
  [0.0193, 0.1192, 0.9505],
];
const times = (matrix, vector) => matrix.map((row) => row.reduce((sum, each, index) => sum + each * vector[index], 0));

function lab(colour, sight) {
  const linear = colour
    .map((each) => each / 255)
    .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
  const seen = times(SIGHTS[sight], linear).map((each) => Math.min(Math.max(each, 0), 1));
  const [x, y, z] = times(TO_XYZ, seen)
    .map((each, index) => each / [0.9505, 1, 1.089][index])
    .map((each) => (each > 0.008856 ? Math.cbrt(each) : 7.787 * each + 16 / 116));
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

const apart = (one, other, sight) =>
  Math.hypot(...lab(one, sight).map((each, index) => each - lab(other, sight)[index]));
const ALL = Array.from({length: SHADES}, (_, index) => shade(index / (SHADES - 1)));

for (const sight of Object.keys(SIGHTS)) {
  test(`NaN stands out from every value, ${sight}`, () => {
    assert.ok(Math.min(...ALL.map((each) => apart(each, NOT_FINITE_COLOUR, sight))) > 15); // 10 is seen at a glance
  });

  test(`the scale gets brighter all the way, ${sight}`, () => {
    const sixteenths = Array.from({length: 17}, (_, index) => lab(shade(index / 16), sight)[0]);
    sixteenths.slice(1).forEach((lightness, index) => assert.ok(lightness > sixteenths[index]));
  });
}

test('"not measured" has a colour of its own, in light and in dark mode', () => {
  for (const background of [
    [0xe4, 0xe7, 0xeb],
    [0x4b, 0x4f, 0x54],
  ]) {
    assert.ok(Math.min(...ALL.map((each) => apart(each, background, 'all'))) > 15);
    assert.equal(
      palette(background)[NOT_MEASURED],
      ((255 << 24) | (background[2] << 16) | (background[1] << 8) | background[0]) >>> 0,
    );
  }
});

test('levels rise with values, between not measured and not finite', () => {
  const made = [...levels(Float32Array.from([NaN, 0, 1e-12, 1e-8, 1e-2, 1, 1e9, Infinity, -Infinity]), SCALE)];
  assert.deepEqual(made, [
    NOT_MEASURED,
    1,
    1,
    1,
    1 + Math.round((SHADES - 1) * 0.75),
    SHADES,
    SHADES,
    NOT_FINITE,
    NOT_FINITE,
  ]);
});

test('levels of a linear scale, of a scale without width, and without a scale', () => {
  assert.deepEqual(
    [...levels(Float32Array.from([0, 0.5, 1]), {low: 0, high: 1, isLinear: true})],
    [1, 1 + Math.round(126.5), SHADES],
  );
  assert.deepEqual(
    [...levels(Float32Array.from([2, NaN]), {low: 2, high: 2, isLinear: false})],
    [1 + Math.round(126.5), NOT_MEASURED],
  );
  assert.deepEqual([...levels(Float32Array.from([NaN, Infinity]), null)], [NOT_MEASURED, NOT_FINITE]);
});

test('several runs share one scale', () => {
  assert.deepEqual(commonScale([[1e-3, 1], null, [1e-9, 0.1]], false), {low: 1e-9, high: 1, isLinear: false});
  assert.equal(commonScale([null], false), null);
  assert.equal(share(1e-4, SCALE), 0.5);
  assert.equal(share(0, SCALE), 0);
});
