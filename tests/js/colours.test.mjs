import assert from 'node:assert/strict';
import {test} from 'node:test';

import {
  commonScale,
  diverging,
  levels,
  NOT_FINITE,
  NOT_MEASURED,
  palette,
  shade,
  SHADES,
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
const HATCH = [
  [
    [0xfd, 0xee, 0xf4],
    [0xc2, 0x25, 0x5c],
  ],
  [
    [0x4a, 0x2f, 0x3a],
    [0xff, 0x80, 0xab],
  ],
];
const ALL = Array.from({length: SHADES}, (_, index) => shade(index / (SHADES - 1)));

for (const sight of Object.keys(SIGHTS)) {
  for (const isDark of [false, true]) {
    test(`the lines of the hatch of NaN stand out from what lies between them, ${sight}, dark: ${isDark}`, () => {
      const [ground, line] = HATCH[Number(isDark)];
      assert.ok(apart(ground, line, sight) > 25); // 10 is seen at a glance
    });

    test(`what is far below its level differs from what is far above it, ${sight}, dark: ${isDark}`, () => {
      for (const side of [0.5, 0.7, 0.85, 1]) {
        const [below, above] = [-side, side].map((each) => diverging(0.5 + each / 2, isDark));
        assert.ok(apart(below, above, sight) > 15);
      }
    });
  }

  test(`the scale gets brighter all the way, ${sight}`, () => {
    const sixteenths = Array.from({length: 17}, (_, index) => lab(shade(index / 16), sight)[0]);
    sixteenths.slice(1).forEach((lightness, index) => assert.ok(lightness > sixteenths[index]));
  });
}

test('"not measured" has a colour of its own, in light and in dark mode', () => {
  for (const background of [
    [0xd9, 0xdd, 0xe2],
    [0x4b, 0x4f, 0x54],
  ]) {
    assert.ok(Math.min(...ALL.map((each) => apart(each, background, 'all'))) > 15);
    assert.equal(
      palette(background, [0, 0, 0])[NOT_MEASURED],
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
  assert.deepEqual(commonScale([[1e-3, 1], null, [1e-9, 0.1]], false), {
    low: 1e-9,
    high: 1,
    isLinear: false,
    isRatio: false,
  });
  assert.equal(commonScale([null], false), null);
});

test('levels of ratios rise with the distance from 1, to either side, and colours follow', () => {
  const scale = {low: 0.01, high: 100, isLinear: false, isRatio: true};
  const made = [...levels(Float32Array.from([NaN, 1, 10, 0.1, 1e3, 0, Infinity]), scale)];
  assert.deepEqual(made, [NOT_MEASURED, 1, 2 + 2 * 63, 1 + 2 * 63, SHADES, SHADES - 1, NOT_FINITE]);
  const colours = palette([1, 1, 1], [2, 2, 2], (position) => [0, 0, Math.round(255 * position)], true);
  const blue = (level) => (colours[level] >>> 16) & 255;
  assert.deepEqual([1, SHADES - 1, SHADES].map(blue), [128, 0, 255]);
});
