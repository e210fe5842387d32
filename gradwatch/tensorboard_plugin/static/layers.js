// @ts-check

/** Chooses the layers that a map shows: weights by default, or all of them, and those that a search asks for. */

/** What the rows of a map are: blocks of weights, every weight, or every parameter. */
export const ROWS = /** @type {const} */ ({
  blocks: 'Blocks of weights',
  weights: 'Every weight',
  all: 'Every parameter',
});

/** @typedef {keyof typeof ROWS} RowChoice */

const BIAS = /bias/i;
const NORM = /norm|(^|\.)(ln|bn)_?\w*\./i;

/**
 * Returns whether a layer is asked for by `query`: globs as `include=` takes them, separated by commas, or a part of the
 * name in any case.
 *
 * @param {string} query
 * @returns {(name: string) => boolean}
 */
export function matcher(query) {
  const parts = query
    .split(',')
    .map((part) => part.trim())
    .filter(Boolean);
  if (!parts.length) return () => true;
  const tests = parts.map((part) => (/[*?[]/.test(part) ? globTest(part) : partTest(part)));
  return (name) => tests.some((test) => test(name));
}

/**
 * @param {string} part
 * @returns {(name: string) => boolean}
 */
function partTest(part) {
  const wanted = part.toLowerCase();
  return (name) => name.toLowerCase().includes(wanted);
}

/**
 * Tests names as Python's `fnmatchcase` does: `*` is anything, `?` one character, `[ab]` and `[!ab]` one of some.
 *
 * @param {string} glob
 * @returns {(name: string) => boolean}
 */
function globTest(glob) {
  const pattern = glob.replace(/\[(!?)([^\]]+)\]|[\s\S]/g, (found, not, some) => {
    if (some !== undefined) return `[${not ? '^' : ''}${some.replace(/[\\^[]/g, '\\$&')}]`;
    if (found === '*') return '[\\s\\S]*';
    return found === '?' ? '[\\s\\S]' : found.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  });
  try {
    const test = new RegExp(`^${pattern}$`, 'u');
    return (name) => test.test(name);
  } catch {
    return partTest(glob); // a range such as [z-a], while somebody is still typing
  }
}

/**
 * Returns for each layer whether it is a weight: neither a bias nor part of a normalisation. If that leaves nothing, all
 * are. A weight with as many entries as the bias beside it scales channels, which normalisations do.
 *
 * @param {string[]} names
 * @param {number[]} size
 */
export function weightsOf(names, size) {
  const sizes = new Map(names.map((name, index) => [name, size[index]]));
  const isScale = (/** @type {string} */ name) =>
    name.endsWith('weight') && sizes.get(name) === sizes.get(name.replace(/weight$/, 'bias'));
  const found = names.map((name) => !BIAS.test(name) && !NORM.test(name) && !isScale(name));
  return found.includes(true) ? found : names.map(() => true);
}
