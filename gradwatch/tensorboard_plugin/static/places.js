// @ts-check

/** Says what is chosen, and which steps are shown, once a finding is opened. */

import {keyOf} from './findings.js';
import {around} from './view.js';

/** @import {Finding} from './api.js' */
/** @import {View} from './view.js' */

const ROOM = 25; // steps beside a finding

/** What is chosen once the panel at the right is closed. */
export const CLOSED = {finding: null, layer: null, step: null};

/**
 * Returns what is chosen once a finding is opened.
 *
 * @param {string} run
 * @param {Finding} finding
 */
export function placeOf(run, finding) {
  return {finding: keyOf(run, finding), layer: finding.layer || null, step: finding.step};
}

/**
 * Returns the steps around a finding, or null for all steps, on which a long finding is seen well enough.
 *
 * @param {[number, number]} stretch its first and its last step.
 * @param {View} bounds
 */
export function viewOf([from, last], bounds) {
  const length = last - from + 1;
  const isVisible = length > (bounds.to - bounds.from) / 20;
  return isVisible ? null : around(from, last, Math.max(ROOM, 2 * length), bounds);
}
