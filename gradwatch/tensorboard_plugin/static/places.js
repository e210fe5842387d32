// @ts-check

/** Says what is chosen, and which steps and which statistic are shown, for a finding. */

import {firstOf, keyOf} from './findings.js';
import {around} from './view.js';

/** @import {Finding, Overview} from './api.js' */
/** @import {View} from './view.js' */

const ROOM = 25; // steps beside a finding

const USUAL = 'grad_ratio'; // shows what changes along time

/**
 * The statistic that a kind is measured in, where the usual one cannot show it: a layer that has been sick from the start is
 * normal beside its own median.
 *
 * @type {Record<string, string>}
 */
const MEASURED_IN = {
  vanishing: 'grad_rms', // small beside other layers, per entry
  dead: 'dead_share',
  saturated: 'saturated_share',
  stalled: 'update_ratio',
};

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

/**
 * Returns the statistic to show as long as the user has chosen none: the one that the first finding is measured in, if every
 * run has logged it.
 *
 * @param {{findings: Finding[], overview: Overview | null}[]} panels
 */
export function statisticOf(panels) {
  const first = firstOf(panels.flatMap(({findings}) => findings));
  const wanted = (first && MEASURED_IN[first.kind]) ?? USUAL;
  const overviews = panels.map(({overview}) => overview).filter((overview) => overview !== null);
  const isLogged = overviews.every(({statistics}) => statistics.some(({name}) => name === wanted));
  return isLogged ? wanted : USUAL;
}
