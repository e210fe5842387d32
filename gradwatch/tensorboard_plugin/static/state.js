// @ts-check

/** Defines what the user can choose, and writes it as parts of an address. It does not know the page. */

import {ROWS} from './layers.js';

/** @import {RowChoice} from './layers.js' */

/** How far colours reach: over one run, over all runs that are shown, or less far, so that small differences show. */
export const SCALES = /** @type {const} */ ({run: 'run', shared: 'shared', clamp: 'clamped'});

/** @typedef {keyof typeof SCALES} ScaleChoice */

/**
 * @typedef {object} State
 * @property {string[] | null} runs names; null lets the tab choose.
 * @property {string | null} statistic null lets the tab choose.
 * @property {ScaleChoice} scale
 * @property {RowChoice} rows
 * @property {string | null} layer
 * @property {number | null} step
 * @property {string | null} finding as `keyOf` of findings.js writes it.
 * @property {number | null} from the first step in view; null for all steps.
 * @property {number | null} to the last step in view; null for all steps.
 */

/** @type {Readonly<State>} */
export const DEFAULTS = Object.freeze({
  runs: null,
  statistic: null,
  scale: 'run',
  rows: 'blocks',
  layer: null,
  step: null,
  finding: null,
  from: null,
  to: null,
});

/**
 * Writes `state` as {name: text}. What has its default value is left out.
 *
 * @param {State} state
 */
export function toParameters(state) {
  /** @type {Record<string, string>} */
  const parameters = {};
  for (const name of /** @type {(keyof State)[]} */ (Object.keys(DEFAULTS))) {
    const value = state[name];
    if (value === null || value === DEFAULTS[name]) continue;
    parameters[name] = name === 'runs' ? JSON.stringify(value) : String(value);
  }
  return parameters;
}

/**
 * Reads what `toParameters` wrote. What cannot be read gets its default value.
 *
 * @param {Record<string, string>} parameters
 * @returns {State}
 */
export function fromParameters(parameters) {
  const text = (/** @type {string} */ name) => (Object.hasOwn(parameters, name) ? String(parameters[name]) : null);
  const [from, to] = [wholeNumber(text('from')), wholeNumber(text('to'))];
  const isStretch = from !== null && to !== null && from <= to;
  return {
    runs: names(text('runs')),
    statistic: text('statistic'),
    scale: oneOf(text('scale'), SCALES, DEFAULTS.scale),
    rows: oneOf(text('rows'), ROWS, DEFAULTS.rows),
    layer: text('layer'),
    step: wholeNumber(text('step')),
    finding: text('finding'),
    from: isStretch ? from : null,
    to: isStretch ? to : null,
  };
}

/**
 * @template {string} Choice
 * @param {string | null} text
 * @param {Record<Choice, string>} choices
 * @param {Choice} otherwise
 * @returns {Choice}
 */
function oneOf(text, choices, otherwise) {
  return text !== null && Object.hasOwn(choices, text) ? /** @type {Choice} */ (text) : otherwise;
}

/**
 * @param {string | null} text
 * @returns {string[] | null}
 */
function names(text) {
  try {
    const value = JSON.parse(text ?? 'null');
    return Array.isArray(value) && value.every((name) => typeof name === 'string') ? value : null;
  } catch {
    return null;
  }
}

/** @param {string | null} text */
function wholeNumber(text) {
  return text !== null && /^\d{1,15}$/.test(text) ? Number(text) : null;
}
