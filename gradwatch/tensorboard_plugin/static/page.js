/** The page around the maps: what stands where, and what it says while there is nothing to show. */

import {element} from './dom.js';

const HELP =
  'Scroll to zoom steps, Shift and scroll to zoom layers, drag to move, click for a layer and a step, ' +
  'double-click to see all. Keys: arrows, + and −, [ and ], 0.';

/** @param {object} on {statistic(name), search(query), zoom(factor), all()}. */
export function page(on) {
  const statistic = element('select', {id: 'statistic', onchange: (event) => on.statistic(event.target.value)});
  const search = element('input', {
    id: 'search',
    type: 'search',
    placeholder: 'part of a name',
    oninput: (event) => on.search(event.target.value),
  });
  const tool = (text, label, act) =>
    element('button', {className: 'tool', title: label, 'aria-label': label, onclick: act}, text);
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
    tool('All', 'Show all steps and layers', on.all),
    legend,
  );
  const side = element('aside', {}, element('h2', {}, 'Runs'), runs, element('h2', {}, 'Findings'), findings);
  const main = element('main', {}, problem, panels, element('p', {id: 'help', className: 'quiet'}, HELP), details);
  const say = (text) => {
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

/** A box to tick for each run, with the number of its findings. */
export function showRuns(container, runs, told, chosen, choose) {
  const focused = document.activeElement?.closest('.runs') && document.activeElement.value;
  const items = runs.map((run) => {
    const count = told[run]?.findings.length ?? 0;
    const box = element('input', {
      type: 'checkbox',
      value: run,
      checked: chosen.includes(run),
      onchange: (event) => {
        choose(runs.filter((each) => (each === run ? event.target.checked : chosen.includes(each))));
      },
    });
    return element(
      'label',
      {title: run},
      box,
      element('span', {className: 'name'}, run),
      element('span', {className: count ? 'count' : 'count none', title: 'findings'}, String(count)),
    );
  });
  container.replaceChildren(...(items.length ? items : [element('p', {className: 'quiet'}, 'None yet.')]));
  [...container.querySelectorAll('input')].find((box) => box.value === focused)?.focus();
}

/** The statistics that any of the panels has. */
export function showStatistics(select, panels, chosen) {
  const known = new Map(
    panels.flatMap(({overview}) => overview?.statistics ?? []).map(({name, label}) => [name, label]),
  );
  if (known.size && !known.has(chosen)) known.set(chosen, `${chosen} (not logged)`); // an address may ask for it
  select.replaceChildren(
    ...[...known].map(([value, label]) => element('option', {value, selected: value === chosen}, label)),
  );
  select.disabled = known.size === 0;
}

/** What to do where no map can be shown. */
export function emptyState(runs) {
  if (runs.length)
    return element(
      'p',
      {className: 'empty'},
      'No run is chosen. Tick one on the left; tick several to see them on one colour scale.',
    );
  const code =
    'import gradwatch\n\nwith gradwatch.watch(model, optimizer, log_dir="runs/mine") as watcher:\n    …  # your training loop';
  return element(
    'div',
    {className: 'empty'},
    element('h2', {}, 'No run here was watched by gradwatch yet'),
    element('p', {}, 'Watch a run into TensorBoard’s log directory; this page shows it once TensorBoard has read it:'),
    element('pre', {}, code),
    element(
      'p',
      {},
      'If a run should be here: TensorBoard reads its directory every 30 seconds, or at the reload button above.',
    ),
  );
}
