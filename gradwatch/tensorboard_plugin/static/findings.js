// @ts-check

/** Shows the list of findings, and one finding with its evidence, cause and remedies. */

import {figure, wholeNumber} from './axis.js';
import {element, focusedIn} from './dom.js';

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
  if (!ended) {
    const open = lastLogged === null ? 'still open' : `still open at the last logged step, ${wholeNumber(lastLogged)}`;
    return `since step ${wholeNumber(step)}, ${open}`;
  }
  return last > step ? `steps ${wholeNumber(step)} to ${wholeNumber(last)}` : `step ${wholeNumber(step)}`;
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
    const heading = runs.length > 1 ? [element('h3', {}, run)] : [];
    const items = findings.map((finding) => item(run, finding, keyOf(run, finding) === selected, choose));
    const list = items.length ? element('ul', {}, ...items) : element('p', {className: 'quiet'}, 'No findings.');
    return [...heading, list, ...problems.map((problem) => element('p', {className: 'error'}, problem))];
  });
  const focused = focusedIn(container, 'key');
  container.replaceChildren(...parts);
  [...container.querySelectorAll('button')].find((button) => button.dataset.key === focused)?.focus();
}

/**
 * @param {string} run
 * @param {Finding} finding
 * @param {boolean} isSelected
 * @param {Choose} choose
 */
function item(run, finding, isSelected, choose) {
  const {kind, severity, layer, layers} = finding;
  const others = layers.length - 1;
  const more = others > 0 ? ` and ${others} other ${others === 1 ? 'layer' : 'layers'}` : '';
  return element(
    'li',
    {},
    element(
      'button',
      {
        className: `finding ${severity}`,
        'aria-current': String(isSelected),
        data: {key: keyOf(run, finding)},
        onclick: () => choose(run, finding),
      },
      element('span', {className: 'kind'}, kind),
      element('span', {className: 'severity'}, severity),
      element('span', {className: 'where'}, `${layer || 'the whole run'}${more}`),
      element('span', {className: 'when'}, duration(finding)),
    ),
  );
}

/**
 * Makes the card of one finding: what was measured, against which limit, the cause, the remedies, the neighbours.
 *
 * @param {string} run
 * @param {Finding} finding
 * @param {number | null} lastLogged the last logged step of the run, if it is known.
 * @param {Neighbours | null} neighbours
 */
export function findingCard(run, finding, lastLogged, neighbours) {
  return element(
    'section',
    {className: 'card', 'aria-label': `Finding: ${finding.kind}`},
    element('h2', {}, `${finding.kind} in ${finding.layer || 'the whole run'}`),
    element('p', {}, finding.measured),
    element(
      'dl',
      {},
      ...fact('When', `${duration(finding, lastLogged)}; raised at step ${wholeNumber(finding.raised_step)}`),
      ...fact('Severity', finding.severity),
      ...fact('Measured', figure(finding.value)),
      ...fact('Threshold', figure(finding.threshold)),
      ...fact('Layers', finding.layer ? covered(finding.layers) : 'the whole run'),
      ...fact('Run', run),
    ),
    element('h3', {}, 'Cause'),
    element('p', {}, finding.cause),
    element('h3', {}, 'What to try'),
    element('ol', {}, ...finding.remedies.map((remedy) => element('li', {}, `${remedy.text} (${remedy.name})`))),
    neighbours && neighbourTable(neighbours),
  );
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
    'div',
    {},
    element('h3', {}, `Its neighbours at step ${wholeNumber(step)}, in forward order`),
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
