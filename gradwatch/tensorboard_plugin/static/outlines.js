// @ts-check

/** Turns findings into the boxes around them on a map. */

/** @import {Finding} from './api.js' */

/**
 * A box in steps and rows.
 *
 * @typedef {object} Outline
 * @property {number} from
 * @property {number} to
 * @property {number} top
 * @property {number} bottom
 * @property {number | null} number of the finding in the list; only its first box has it.
 * @property {boolean} isSelected
 */

/**
 * Returns the stretches of neighbouring numbers among `rows`, each as its first row and one past its last.
 *
 * @param {number[]} rows
 */
export function stretches(rows) {
  const sorted = [...new Set(rows)].sort((one, other) => one - other);
  /** @type {[number, number][]} */
  const found = [];
  for (const row of sorted) {
    const last = found.at(-1);
    if (last && last[1] === row) last[1] = row + 1;
    else found.push([row, row + 1]);
  }
  return found;
}

/**
 * Returns a box for each stretch of neighbouring rows that a finding covers.
 *
 * @param {Finding[]} findings
 * @param {(finding: Finding) => {rows: number[], from: number, to: number, isSelected: boolean}} placeOf
 * @returns {Outline[]}
 */
export function outlinesOf(findings, placeOf) {
  return findings.flatMap((finding, at) => {
    const {rows, ...place} = placeOf(finding);
    return stretches(rows).map(([top, bottom], index) => ({...place, top, bottom, number: index ? null : at + 1}));
  });
}
