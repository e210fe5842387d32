/** Below the maps: the finding, the layer and the step that are looked at. */

import {askForArray} from './api.js';
import {element} from './dom.js';
import {findingCard, keyOf} from './findings.js';
import {showLayer} from './layer.js';
import {showProfile} from './profile.js';

const NEIGHBOURS = 3; // on either side
const asked = new WeakMap(); // container → the latest question
const charts = new WeakMap(); // container → charts that are drawn

/** Fills `container` from the app's state. A question that was overtaken draws nothing. */
export async function showDetails(container, app) {
  const question = {};
  asked.set(container, question);
  const {state, panels, view} = app;
  try {
    const parts = await Promise.all([
      cardOf(app),
      sectionOf(`Layer: ${state.layer}`, panels.length ? state.layer : null),
      sectionOf(`Step ${state.step}`, panels.length ? state.step : null),
    ]);
    if (asked.get(container) !== question) return;
    const [, layer, step] = parts;
    for (const chart of charts.get(container) ?? []) chart.destroy();
    const made = [];
    charts.set(container, made); // a later question takes away what this one has drawn by then
    container.replaceChildren(...parts.filter(Boolean));
    const isLatest = () => asked.get(container) === question;
    const hover = (at) => app.hover(at);
    if (layer && view) made.push(...(await showLayer(layer.lastElementChild, panels, state, view, hover, isLatest)));
    if (step && app.statistic && isLatest())
      made.push(...(await showProfile(step.lastElementChild, panels, app.statistic, state, isLatest)));
  } catch (error) {
    if (asked.get(container) !== question) return;
    container.replaceChildren(element('p', {className: 'error', role: 'alert'}, error.message));
  }
}

function sectionOf(title, value) {
  if (value === null) return null;
  return element(
    'section',
    {className: 'card', 'aria-label': title},
    element('h2', {}, title),
    element('div', {className: 'body'}),
  );
}

async function cardOf({state, told, panels}) {
  for (const {run, overview} of panels) {
    const finding = told[run]?.findings.find((each) => keyOf(run, each) === state.finding);
    if (!finding) continue;
    // what the neighbours measured may be unreadable, which the map says: the finding is shown without
    const neighbours = overview ? await neighboursOf(run, finding, panels).catch(() => null) : null;
    return findingCard(run, finding, overview?.lastStep ?? null, neighbours);
  }
  return null;
}

/** The layers before and after in forward order, at the step at which the finding was told. */
async function neighboursOf(run, finding, panels) {
  const panel = panels.find((each) => each.run === run);
  const {layers} = panel.overview;
  const place = panel.order.indexOf(layers.indexOf(finding.layer));
  if (place < 0) return null;
  const {header, values} = await askForArray('profile', {run, statistic: 'grad_norm', step: finding.raised_step});
  const near = panel.order.slice(Math.max(0, place - NEIGHBOURS), place + NEIGHBOURS + 1);
  const value = (name, layer) =>
    header.rows.includes(name) ? values[header.rows.indexOf(name) * layers.length + layer] : NaN;
  const rows = near.map((layer) => ({
    layer: layers[layer],
    value: value('highest', layer),
    floor: value('floor', layer),
    ceiling: value('ceiling', layer),
    isSick: layers[layer] === finding.layer,
  }));
  return {step: header.step, rows};
}
