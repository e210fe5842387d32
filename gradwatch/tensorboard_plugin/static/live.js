// @ts-check

/** Asks for what is new by itself, since TensorBoard's page reloads only if somebody switches that on. */

import {ask, messageOf} from './api.js';

/** @import {FindingsAnswer, ListedRun} from './api.js' */

const STILL_WRITTEN = 180; // seconds since the last write; a writer flushes every two minutes
const [OFTEN, SELDOM] = [5_000, 30_000]; // milliseconds between two questions

/**
 * Returns whether a run is still being written, as far as one can tell.
 *
 * @param {ListedRun | undefined} listed
 */
export function isLive(listed) {
  return listed !== undefined && listed.age < STILL_WRITTEN;
}

/**
 * Calls `reload` again and again while the page is seen: often while something new may come soon.
 *
 * @param {() => Promise<void>} reload
 * @param {() => boolean} isOften
 */
export function poll(reload, isOften) {
  const next = async () => {
    if (!document.hidden) await reload();
    setTimeout(next, isOften() ? OFTEN : SELDOM);
  };
  setTimeout(next, isOften() ? OFTEN : SELDOM);
}

/**
 * Asks for the findings of each run that has something new. A question that failed becomes a problem of its run.
 *
 * @param {ListedRun[]} listed
 * @param {Map<string, ListedRun>} before
 * @param {Record<string, FindingsAnswer>} known by run, as of `before`.
 * @returns {Promise<Record<string, FindingsAnswer>>}
 */
export async function findingsOf(listed, before, known) {
  const answers = await Promise.all(
    listed.map(({run, version}) => {
      const isKnown = before.get(run)?.version === version && !known[run]?.hasFailed;
      if (isKnown) return known[run];
      return ask('findings', {run}).catch((error) => ({findings: [], problems: [messageOf(error)], hasFailed: true}));
    }),
  );
  return Object.fromEntries(listed.map(({run}, index) => [run, answers[index]]));
}
