// @ts-check

/** Shows the list of findings by cause, and one finding with its evidence, cause and remedies. */

import {figure, stepsText, wholeNumber} from './axis.js';
import {element, focusedIn} from './dom.js';
import {titleOf, verdictInWords} from './runs.js';

/** @import {Finding, FindingsAnswer} from './api.js' */

/** @typedef {(run: string, finding: Finding) => void} Choose */

/** @typedef {{layer: string, value: number, floor: number, ceiling: number, isSick: boolean}} Neighbour NaN: not known. */

/** @typedef {{step: number, rows: Neighbour[]}} Neighbours of a sick layer, in forward order. */

/**
 * Returns the name of a finding in an address.
 *
 * @param {string} run
 * @param {Pick<Finding, 'kind' | 'layer' | 'step'>} finding
 */
export function keyOf(run, {kind, layer, step}) {
  return JSON.stringify([run, kind, layer, step]);
}

/**
 * Says how long a finding lasted: `steps 12 to 57`, or `since step 12, still open`.
 *
 * @param {Pick<Finding, 'step' | 'last_step' | 'ended'>} finding
 * @param {number | null} lastLogged the last logged step of the run, if it is known.
 */
export function duration({step, last_step: last, ended}, lastLogged = null) {
  if (ended) return stepsText(step, last);
  const open = lastLogged === null ? 'still open' : `still open at the last logged step, ${wholeNumber(lastLogged)}`;
  return `since step ${wholeNumber(step)}, ${open}`;
}

const SHOWN_REMEDIES = 3; // what acts on the cause comes first

/** @type {Record<string, (value: string, limit: string) => string>} what was measured, by kind, with its unit. */
const WORDS = {
  vanishing: (value, limit) => `gradient norm ${value} (limit ${limit})`,
  exploding: (value, limit) => `${value} × its level (limit ${limit} ×)`,
  stalled: (value, limit) => `largest relative change ${value} (limit ${limit})`,
  unstable: (value, limit) => `the loss jumps by ${value} × its first value (limit ${limit} ×)`,
};

/** @type {Record<string, string>} of kinds that are measured as a share. */
const SHARES = {dead: 'of its units are dead', saturated: 'of its activations are flat'};

/**
 * Says what was measured, with its unit and its limit: 48 × its level (limit 2 ×).
 *
 * @param {Pick<Finding, 'kind' | 'layer' | 'value' | 'threshold' | 'figure'>} finding
 */
export function inWords({kind, layer, value, threshold, figure: words}) {
  if (words) return words;
  if (kind === 'nonfinite') return nonfinite(layer, value);
  if (kind === 'exploding' && value === null) return 'the gradient norm overflows';
  if (Object.hasOwn(SHARES, kind)) return `${percent(value)} ${SHARES[kind]} (limit ${percent(threshold)})`;
  return (WORDS[kind] ?? WORDS.stalled)(figure(value), figure(threshold));
}

/**
 * @param {string} layer
 * @param {number | null} value
 */
function nonfinite(layer, value) {
  if (!layer) return 'the loss is NaN or Inf';
  return `${value === 1 ? 'at least 1 entry is' : `${wholeNumber(value ?? 0)} entries are`} NaN or Inf`;
}

/** @param {number | null} share */
function percent(share) {
  return `${figure(share === null ? null : 100 * share)} %`;
}

/**
 * Returns the finding that a run opens with: the first one, which nothing before it explains.
 *
 * @param {Finding[]} findings
 * @returns {Finding | undefined}
 */
export function firstOf(findings) {
  return findings[0];
}

/**
 * Returns the indices of findings by cause: each one is followed by those that it led to, with how far down they are.
 *
 * @param {Pick<Finding, 'follows'>[]} findings
 * @param {number | null} leader
 * @returns {{index: number, level: number}[]}
 */
export function byCause(findings, leader = null, level = 0) {
  return findings.flatMap(({follows}, index) =>
    (follows ?? null) === leader ? [{index, level}, ...byCause(findings, index, level + 1)] : [],
  );
}

/**
 * Says that nothing was found.
 *
 * @param {FindingsAnswer | undefined} answer
 */
function silence(answer) {
  const words = verdictInWords(answer);
  return `${words[0].toUpperCase()}${words.slice(1)}.`;
}

/**
 * Fills `container` with the findings of `runs`.
 *
 * @param {HTMLElement} container
 * @param {string[]} runs
 * @param {Record<string, FindingsAnswer>} answers by run.
 * @param {string | null} selected the key of a finding.
 * @param {Choose} choose
 */
export function showFindings(container, runs, answers, selected, choose) {
  const parts = runs.flatMap((run) => {
    const {findings, problems} = answers[run] ?? {findings: [], problems: []};
    const heading = runs.length > 1 ? [element('h3', {}, titleOf(run))] : [];
    const items = byCause(findings).map(({index, level}) => {
      const finding = findings[index];
      return item(run, finding, index, level, keyOf(run, finding) === selected, choose);
    });
    const list = items.length ? element('ul', {}, ...items) : element('p', {className: 'quiet'}, silence(answers[run]));
    return [...heading, list, ...problems.map((problem) => element('p', {className: 'error'}, problem))];
  });
  const focused = focusedIn(container, 'key');
  container.replaceChildren(...parts);
  [...container.querySelectorAll('button')].find((button) => button.dataset.key === focused)?.focus();
}

/**
 * @param {string} run
 * @param {Finding} finding
 * @param {number} index
 * @param {number} level
 * @param {boolean} isSelected
 * @param {Choose} choose
 */
function item(run, finding, index, level, isSelected, choose) {
  const {kind, severity, layer, layers, follows} = finding;
  const others = layers.length - 1;
  const more = others > 0 ? ` and ${others} other ${others === 1 ? 'layer' : 'layers'}` : '';
  const consequence = level ? element('span', {className: 'when'}, `└ may follow from ${(follows ?? 0) + 1}`) : null;
  return element(
    'li',
    {style: {marginLeft: `${12 * Math.min(level, 3)}px`}},
    element(
      'button',
      {
        className: `finding ${severity}`,
        title: finding.message,
        'aria-current': String(isSelected),
        data: {key: keyOf(run, finding)},
        onclick: () => choose(run, finding),
      },
      element('span', {className: 'kind'}, element('span', {className: 'number'}, String(index + 1)), kind),
      element('span', {className: 'severity'}, severity),
      element('span', {className: 'where'}, `${layer || 'the whole run'}${more}`),
      element('span', {className: 'when'}, duration(finding)),
      consequence,
    ),
  );
}

/**
 * Makes the card of one finding: what was measured, against which limit, the cause, what was done about it, the remedies,
 * the neighbours.
 *
 * @param {string} run
 * @param {Finding[]} findings of the run.
 * @param {number} index of the finding.
 * @param {number | null} lastLogged the last logged step of the run, if it is known.
 * @param {Neighbours | null} neighbours
 */
export function findingCard(run, findings, index, lastLogged, neighbours) {
  const finding = findings[index];
  const leader = typeof finding.follows === 'number' ? findings[finding.follows] : null;
  const reason =
    leader && `${leader.kind} at step ${wholeNumber(leader.step)} (finding ${findings.indexOf(leader) + 1})`;
  return element(
    'section',
    {className: `card ${finding.severity}`, 'aria-label': `Finding: ${finding.kind}`},
    element(
      'p',
      {className: 'quiet'},
      `Finding ${index + 1} of ${findings.length} · ${finding.severity} · ${titleOf(run)}`,
    ),
    element('h2', {}, `${finding.kind} in ${finding.layer || 'the whole run'}`),
    element('p', {className: 'figure'}, inWords(finding)),
    element('p', {}, finding.measured),
    element('h3', {}, 'Why'),
    element('p', {}, finding.cause),
    ...actionList(finding.actions),
    element('h3', {}, 'What to try'),
    ...remedyLists(finding.remedies),
    element(
      'dl',
      {},
      ...fact('When', `${duration(finding, lastLogged)}; raised at step ${wholeNumber(finding.raised_step)}`),
      ...fact('Layers', finding.layer ? covered(finding.layers) : 'the whole run'),
      ...(reason ? fact('May follow from', reason) : []),
    ),
    neighbours && neighbourTable(neighbours),
  );
}

/**
 * Returns what recovery has done about a finding, if it has done anything.
 *
 * @param {string[]} actions
 */
function actionList(actions) {
  if (!actions.length) return [];
  const items = actions.map((action) => element('li', {}, action));
  return [element('h3', {}, 'What was done'), element('ul', {className: 'actions'}, ...items)];
}

/**
 * Returns the first remedies, and behind a line to click on the others.
 *
 * @param {Finding['remedies']} remedies
 */
function remedyLists(remedies) {
  const items = remedies.map(({name, text}) => element('li', {}, `${text} (${name})`));
  const [first, rest] = [items.slice(0, SHOWN_REMEDIES), items.slice(SHOWN_REMEDIES)];
  const list = element('ol', {}, ...first);
  if (!rest.length) return [list];
  const more = element('ol', {start: SHOWN_REMEDIES + 1}, ...rest);
  return [list, element('details', {}, element('summary', {}, `${rest.length} more to try`), more)];
}

/**
 * @param {string} name
 * @param {string} text
 */
function fact(name, text) {
  return [element('dt', {}, name), element('dd', {}, text)];
}

/** @param {string[]} layers */
function covered(layers) {
  const shown = layers.slice(0, 6).join(', ');
  return layers.length > 6 ? `${shown} … and ${layers.length - 6} more` : shown;
}

/** @param {Neighbours} neighbours */
function neighbourTable({step, rows}) {
  const heads = ['Layer', 'Gradient norm', 'Faint below', 'Outgrows above'];
  return element(
    'details',
    {},
    element('summary', {}, `Its neighbours at step ${wholeNumber(step)}, in forward order`),
    element(
      'table',
      {},
      element('thead', {}, element('tr', {}, ...heads.map((head) => element('th', {scope: 'col'}, head)))),
      element('tbody', {}, ...rows.map(neighbourRow)),
    ),
  );
}

/** @param {Neighbour} neighbour */
function neighbourRow({layer, value, floor, ceiling, isSick}) {
  return element(
    'tr',
    {className: isSick ? 'sick' : ''},
    element('th', {scope: 'row'}, layer),
    ...[value, floor, ceiling].map((each) => element('td', {}, Number.isNaN(each) ? '–' : figure(each))),
  );
}
