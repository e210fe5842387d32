// @ts-check

/** Lists the runs, the worst first: beside the maps to choose from, and as a table. */

import {counted, figure, NOT_FINITE, wholeNumber} from './axis.js';
import {element, focusedIn} from './dom.js';

/** @import {FindingsAnswer} from './api.js' */

/** @typedef {'error' | 'warning' | 'unknown' | 'healthy'} Severity */

/** @typedef {(runs: string[]) => void} ChooseRuns */

const GRAVITY = {error: 3, warning: 2, unknown: 1, healthy: 0};
const MARKS = {error: '●', warning: '▲', unknown: '?', healthy: '○'}; // shapes, because not everybody sees the colours
const BREAK = /[/_\-,=+ ]/;

/**
 * Returns the gravest severity that was found. A run of which not all is known is not called healthy.
 *
 * @param {FindingsAnswer | undefined} answer
 * @returns {Severity}
 */
export function severityOf(answer) {
  const findings = answer?.findings ?? [];
  if (findings.some(({severity}) => severity === 'error')) return 'error';
  if (findings.length) return 'warning';
  return gapsOf(answer).length ? 'unknown' : 'healthy';
}

/**
 * Returns `runs` with the worst first: by severity, then by number of findings, then by name with numbers as numbers.
 *
 * @param {string[]} runs
 * @param {Record<string, FindingsAnswer>} answers by run.
 */
export function worstFirst(runs, answers) {
  const count = (/** @type {string} */ run) => answers[run]?.findings.length ?? 0;
  const gravity = (/** @type {string} */ run) => GRAVITY[severityOf(answers[run])];
  return [...runs].sort(
    (one, other) =>
      gravity(other) - gravity(one) ||
      count(other) - count(one) ||
      one.localeCompare(other, 'en', {numeric: true}) ||
      (one < other ? -1 : 1),
  );
}

/**
 * Returns how many characters all names share at their beginning, up to the last separator among them.
 *
 * @param {string[]} names
 */
export function sharedLength(names) {
  if (names.length < 2) return 0;
  const [first] = names;
  let length = 0;
  while (length < first.length && names.every((name) => name[length] === first[length])) length++;
  while (length && (!BREAK.test(first[length - 1]) || names.some((name) => name.length === length))) length--;
  return length;
}

/**
 * Returns the name of a run for people. TensorBoard calls a run "." that lies in its log directory itself.
 *
 * @param {string} run
 */
export function titleOf(run) {
  return run === '.' ? '. (the log directory)' : run;
}

/**
 * Shows a button for each run, which shows it alone, with a box to tick to show it beside others.
 *
 * @param {HTMLElement} container
 * @param {string[]} runs the worst first.
 * @param {Record<string, FindingsAnswer>} answers by run.
 * @param {string[]} chosen
 * @param {string} filter a part of the names to list.
 * @param {ChooseRuns} choose
 */
export function showRuns(container, runs, answers, chosen, filter, choose) {
  const focused = focusedIn(container, 'key');
  const cut = sharedLength(runs);
  const wanted = filter.trim().toLowerCase();
  const listed = runs.filter((run) => run.toLowerCase().includes(wanted));
  const items = listed.map((run) => {
    const toggled = () => choose(runs.filter((each) => (each === run) !== chosen.includes(each)));
    return runItem(run, titleOf(run.slice(cut)), answers[run], chosen.includes(run), toggled, () => choose([run]));
  });
  const none = runs.length ? `No run has “${filter}” in its name.` : 'No runs yet.';
  container.replaceChildren(...(items.length ? items : [element('p', {className: 'quiet'}, none)]));
  const all = /** @type {NodeListOf<HTMLElement>} */ (container.querySelectorAll('[data-key]'));
  [...all].find((each) => each.dataset.key === focused)?.focus();
}

/**
 * @param {string} run
 * @param {string} name what is shown of it.
 * @param {FindingsAnswer | undefined} answer
 * @param {boolean} isChosen
 * @param {() => void} toggle
 * @param {() => void} choose
 */
function runItem(run, name, answer, isChosen, toggle, choose) {
  const severity = severityOf(answer);
  const words = verdictInWords(answer);
  const box = element('input', {type: 'checkbox', checked: isChosen, 'aria-label': run, data: {key: `box ${run}`}});
  box.title = `Show ${run} beside the others`;
  box.addEventListener('change', toggle);
  return element(
    'div',
    {className: 'run', title: `${run}: ${words}`},
    box,
    element(
      'button',
      {className: `run-name ${severity}`, 'aria-current': String(isChosen), onclick: choose, data: {key: `run ${run}`}},
      element('span', {className: 'mark', 'aria-hidden': 'true'}, MARKS[severity]),
      element('span', {className: 'name'}, name),
      element(
        'span',
        {className: 'count', 'aria-label': words},
        String(answer?.findings.length || (severity === 'unknown' ? '?' : '✓')),
      ),
    ),
  );
}

/**
 * Says how much was found, and how much of the run is not known.
 *
 * @param {FindingsAnswer | undefined} answer
 */
export function verdictInWords(answer) {
  const count = answer?.findings.length ?? 0;
  const words = count ? counted(count, 'finding') : 'no findings';
  const gaps = gapsOf(answer);
  return gaps.length ? `${words} in what is known: ${gaps.join('; ')}` : words;
}

/**
 * Returns what is not known of a run, in words.
 *
 * @param {FindingsAnswer | undefined} answer
 */
function gapsOf(answer) {
  if (!answer) return [];
  const gaps = [];
  if (answer.unmeasured) gaps.push(`${answer.unmeasured} of ${counted(answer.steps ?? 0, 'step')} not measured`);
  if (answer.unjudged) gaps.push(answer.unjudged);
  if (answer.lost) gaps.push('a part could not be written');
  return gaps;
}

/**
 * Makes a table of all runs.
 *
 * @param {string[]} runs the worst first.
 * @param {Record<string, FindingsAnswer>} answers by run.
 * @param {ChooseRuns} choose
 */
export function runTable(runs, answers, choose) {
  const heads = ['Run', 'Verdict', 'Found', 'First sick step', 'Last step', 'Loss'];
  const cut = sharedLength(runs);
  const caption = cut
    ? element('caption', {className: 'quiet'}, `Each name begins with ${runs[0].slice(0, cut)}`)
    : null;
  return element(
    'table',
    {className: 'runs-table'},
    caption,
    element('thead', {}, element('tr', {}, ...heads.map((head) => element('th', {scope: 'col'}, head)))),
    element('tbody', {}, ...runs.map((run) => tableRow(run, titleOf(run.slice(cut)), answers[run], choose))),
  );
}

/**
 * @param {string} run
 * @param {string} name what is shown of it.
 * @param {FindingsAnswer | undefined} answer
 * @param {ChooseRuns} choose
 */
function tableRow(run, name, answer, choose) {
  const severity = severityOf(answer);
  const findings = answer?.findings ?? [];
  const kinds = [...new Set(findings.map(({kind}) => kind))].join(', ');
  const step = (/** @type {number | null | undefined} */ at) => (typeof at === 'number' ? wholeNumber(at) : '–');
  const loss =
    answer?.isLossFinite === false ? NOT_FINITE : typeof answer?.loss === 'number' ? figure(answer.loss) : '–';
  return element(
    'tr',
    {},
    element(
      'th',
      {scope: 'row'},
      element('button', {className: 'link', title: run, onclick: () => choose([run])}, name),
    ),
    element('td', {className: severity}, `${MARKS[severity]} ${severity}`),
    element('td', {}, kinds || '–'),
    element('td', {}, step(findings[0]?.step)),
    element('td', {}, step(answer?.lastStep)),
    element('td', {}, loss),
  );
}
