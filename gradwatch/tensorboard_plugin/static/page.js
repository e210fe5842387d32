// @ts-check

/** Builds the page around the maps, and says what to do while there is nothing to show. */

import {element} from './dom.js';

/** @import {FindingsAnswer, Overview} from './api.js' */

/**
 * What the page's controls do.
 *
 * @typedef {object} Controls
 * @property {(name: string) => void} statistic
 * @property {(query: string) => void} search
 * @property {(factor: number) => void} zoom
 * @property {() => void} all
 */

const HELP =
  'Scroll to zoom steps, Shift and scroll to zoom layers, drag to move, click to choose a layer and a step, ' +
  'double-click to see all. Keys: arrows, + and −, [ and ], 0.';

/**
 * Makes the page, and names its parts.
 *
 * @param {Controls} on
 */
export function page(on) {
  const statistic = element('select', {id: 'statistic'});
  statistic.addEventListener('change', () => on.statistic(statistic.value));
  const search = element('input', {id: 'search', type: 'search', placeholder: 'part of a name'});
  search.addEventListener('input', () => on.search(search.value));
  const [runs, findings, legend, panels, details] = ['runs', 'list', 'legend', 'panels', 'details'].map((className) =>
    element('div', {className}),
  );
  const problem = element('p', {className: 'error', role: 'alert', hidden: true});
  const bar = element(
    'header',
    {},
    element('span', {className: 'field'}, element('label', {htmlFor: 'statistic'}, 'Statistic'), statistic),
    element('span', {className: 'field'}, element('label', {htmlFor: 'search'}, 'Layers'), search),
    tool('+', 'Zoom in', () => on.zoom(0.5)),
    tool('−', 'Zoom out', () => on.zoom(2)),
    tool('All', 'Show all steps and layers', () => on.all()),
    legend,
  );
  const side = element('aside', {}, element('h2', {}, 'Runs'), runs, element('h2', {}, 'Findings'), findings);
  const main = element('main', {}, problem, panels, element('p', {id: 'help', className: 'quiet'}, HELP), details);
  const say = (/** @type {string} */ text) => {
    problem.textContent = text;
    problem.hidden = !text;
  };
  return {
    element: element('div', {className: 'tab'}, bar, side, main),
    statistic,
    search,
    legend,
    runs,
    findings,
    panels,
    details,
    say,
  };
}

/**
 * @param {string} text
 * @param {string} label
 * @param {() => void} act
 */
function tool(text, label, act) {
  return element('button', {className: 'tool', title: label, 'aria-label': label, onclick: act}, text);
}

/**
 * Shows a box to tick for each run, with the number of its findings.
 *
 * @param {HTMLElement} container
 * @param {string[]} runs
 * @param {Record<string, FindingsAnswer>} answers by run.
 * @param {string[]} chosen
 * @param {(runs: string[]) => void} choose
 */
export function showRuns(container, runs, answers, chosen, choose) {
  const active = document.activeElement;
  const focused = active instanceof HTMLInputElement && active.closest('.runs') ? active.value : null;
  const items = runs.map((run) => {
    const box = element('input', {type: 'checkbox', value: run, checked: chosen.includes(run)});
    box.addEventListener('change', () => {
      choose(runs.filter((each) => (each === run ? box.checked : chosen.includes(each))));
    });
    return runItem(run, box, answers[run]?.findings.length ?? 0);
  });
  container.replaceChildren(...(items.length ? items : [element('p', {className: 'quiet'}, 'No runs yet.')]));
  [...container.querySelectorAll('input')].find((box) => box.value === focused)?.focus();
}

/**
 * @param {string} run
 * @param {HTMLInputElement} box
 * @param {number} count of findings.
 */
function runItem(run, box, count) {
  return element(
    'label',
    {title: run},
    box,
    element('span', {className: 'name'}, run),
    element(
      'span',
      {className: count ? 'count' : 'count none', title: count === 1 ? 'finding' : 'findings'},
      String(count),
    ),
  );
}

/**
 * Offers every statistic that one of the runs has logged.
 *
 * @param {HTMLSelectElement} select
 * @param {(Overview | null)[]} overviews of the runs that are shown.
 * @param {string} chosen
 */
export function showStatistics(select, overviews, chosen) {
  const known = new Map(
    overviews.flatMap((overview) => overview?.statistics ?? []).map(({name, label}) => [name, label]),
  );
  if (known.size && !known.has(chosen)) known.set(chosen, `${chosen} (not logged)`); // an address can ask for it
  select.replaceChildren(
    ...[...known].map(([value, label]) => element('option', {value, selected: value === chosen}, label)),
  );
  select.disabled = known.size === 0;
}

/**
 * Says what to do where no map can be shown.
 *
 * @param {string[]} runs those that could be chosen.
 */
export function emptyState(runs) {
  if (runs.length)
    return element(
      'p',
      {className: 'empty'},
      'No run is chosen. Tick one on the left. If you tick several, they share one colour scale.',
    );
  const code =
    'import gradwatch\n\nwith gradwatch.watch(model, optimizer, log_dir="runs/mine") as watcher:\n    …  # your training loop';
  return element(
    'div',
    {className: 'empty'},
    element('h2', {}, 'No run here was watched by gradwatch yet'),
    element(
      'p',
      {},
      'Watch a run, and write it into TensorBoard’s log directory. This page shows the run once TensorBoard has read it.',
    ),
    element('pre', {}, code),
    element(
      'p',
      {},
      'If you expected a run here: TensorBoard reads its directory every 30 seconds. The reload button above reads it now.',
    ),
  );
}
