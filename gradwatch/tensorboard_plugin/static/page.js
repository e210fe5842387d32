// @ts-check

/** Builds the page around the maps, and says what to do while there is nothing to show. */

import {element} from './dom.js';
import {ROWS} from './layers.js';
import {SCALES} from './state.js';

/** @import {Overview} from './api.js' */
/** @import {RowChoice} from './layers.js' */
/** @import {ScaleChoice, State} from './state.js' */

/**
 * What the page's controls do.
 *
 * @typedef {object} Controls
 * @property {(changes: Partial<State>) => void} choose
 * @property {(query: string) => void} search
 * @property {(text: string) => void} filter the list of runs.
 * @property {(factor: number) => void} zoom
 * @property {() => void} all
 * @property {() => void} undo
 * @property {() => void} table
 * @property {() => void} close the panel at the right.
 */

const HELP = [
  ['wheel, W and S, + and −', 'zoom steps'],
  ['drag', 'select steps to zoom to'],
  ['swipe sideways, Shift and drag, A and D', 'move'],
  ['Shift and wheel, [ and ]', 'zoom layers'],
  ['click, arrow keys', 'choose a layer and a step'],
  ['double-click, 0', 'show all'],
  ['Escape', 'close what is open'],
  ['Back, ↶, Ctrl and Z', 'undo'],
];

/**
 * Makes the page, and names its parts.
 *
 * @param {Controls} on
 */
export function page(on) {
  const statistic = element('select', {id: 'statistic'});
  statistic.addEventListener('change', () => on.choose({statistic: statistic.value}));
  const scale = choice('scale', SCALES);
  scale.addEventListener('change', () => on.choose({scale: /** @type {ScaleChoice} */ (scale.value)}));
  const rows = choice('rows', ROWS);
  rows.addEventListener('change', () => on.choose({rows: /** @type {RowChoice} */ (rows.value)}));
  const search = element('input', {id: 'search', type: 'search', placeholder: 'name or glob: *.norm*'});
  search.addEventListener('input', () => on.search(search.value));
  const filter = element('input', {type: 'search', placeholder: 'filter', 'aria-label': 'Filter runs'});
  filter.addEventListener('input', () => on.filter(filter.value));
  const [runs, findings, panels, details] = ['runs', 'list', 'panels', 'details'].map((className) =>
    element('div', {className}),
  );
  const live = element('span', {className: 'live', role: 'status'});
  const problem = element('p', {className: 'error', role: 'alert', hidden: true});
  const help = dialog('Help', helpTable());
  const bar = element(
    'header',
    {},
    element('h1', {className: 'unseen'}, 'GradWatch'),
    field('statistic', 'Statistic', statistic),
    field('scale', 'Scale', scale),
    field('rows', 'Rows', rows),
    field('search', 'Layers', search),
    live,
    tool('+', 'Zoom in', () => on.zoom(0.5)),
    tool('−', 'Zoom out', () => on.zoom(2)),
    tool('All', 'Show all steps and layers', on.all),
    tool('↶', 'Undo', on.undo),
    tool('?', 'Help', () => help.showModal()),
  );
  const tableTool = tool('Table', 'Table of runs', on.table);
  const side = element(
    'aside',
    {'aria-label': 'Runs and findings'},
    element('div', {className: 'heading'}, element('h2', {}, 'Runs'), filter, tableTool),
    runs,
    element('h2', {}, 'Findings'),
    findings,
  );
  const close = tool('×', 'Close details', on.close);
  close.classList.add('close');
  const dock = element('section', {className: 'dock', 'aria-label': 'Details', hidden: true}, close, details);
  const main = element('main', {}, problem, panels);
  const say = (/** @type {string} */ text) => {
    problem.textContent = text;
    problem.hidden = !text;
  };
  return {
    element: element('div', {className: 'tab'}, bar, side, main, dock, help),
    ...{statistic, scale, rows, search, live, runs, findings, main, panels, dock, details, say},
  };
}

/**
 * Makes a window over the page. Escape closes it.
 *
 * @param {string} title
 * @param {HTMLElement} content
 */
export function dialog(title, content) {
  const close = element('button', {className: 'tool', 'aria-label': 'Close', onclick: () => made.close()}, '×');
  const heading = element('div', {className: 'heading'}, element('h2', {}, title), close);
  const made = element('dialog', {'aria-label': title}, heading, content);
  return made;
}

function helpTable() {
  const rows = HELP.map(([how, what]) =>
    element('tr', {}, element('th', {scope: 'row'}, how), element('td', {}, what)),
  );
  return element('table', {id: 'help'}, element('tbody', {}, ...rows));
}

/**
 * @param {string} id
 * @param {Record<string, string>} choices
 */
function choice(id, choices) {
  const options = Object.entries(choices).map(([value, label]) => element('option', {value}, label));
  return element('select', {id}, ...options);
}

/**
 * @param {string} id
 * @param {string} label
 * @param {HTMLElement} control
 */
function field(id, label, control) {
  return element('span', {className: 'field'}, element('label', {htmlFor: id}, label), control);
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
      'No run is chosen. Click one on the left. Tick others to see them below it.',
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
      'If you expected a run here: TensorBoard looks for new runs in its directory from time to time. The reload button ' +
        'above looks now.',
    ),
  );
}
