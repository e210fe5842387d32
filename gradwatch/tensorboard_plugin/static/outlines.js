/** Findings → the boxes around them on a map. */

/** [first, one past the last] of each stretch of neighbours among `rows`. */
export function stretches(rows) {
  const sorted = [...new Set(rows)].sort((one, other) => one - other);
  const found = [];
  for (const row of sorted) {
    if (found.length && found.at(-1)[1] === row) found.at(-1)[1] = row + 1;
    else found.push([row, row + 1]);
  }
  return found;
}

/**
 * A box for each stretch of neighbouring rows that a finding covers.
 *
 * @param {object[]} findings
 * @param {(finding: object) => {rows: number[], from: number, to: number, isSelected: boolean}} placeOf
 */
export function outlinesOf(findings, placeOf) {
  return findings.flatMap((finding) => {
    const {rows, ...place} = placeOf(finding);
    return stretches(rows).map(([top, bottom]) => ({...place, top, bottom}));
  });
}
