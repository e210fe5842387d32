// @ts-check

/** Turns findings into the boxes around them on a map. */

/** @import {Finding} from './api.js' */

/** @typedef {{from: number, to: number, top: number, bottom: number, isSelected: boolean}} Outline in steps and rows. */

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
  return findings.flatMap((finding) => {
    const {rows, ...place} = placeOf(finding);
    return stretches(rows).map(([top, bottom]) => ({...place, top, bottom}));
  });
}
