// @ts-check

/** Shows, at the right, the finding, the layer and the step that were chosen. */

import {askForArray, messageOf} from './api.js';
import {element} from './dom.js';
import {findingCard, keyOf} from './findings.js';
import {showLayer} from './layer.js';
import {showProfile} from './profile.js';
import {hideTooltip} from './tooltip.js';

/** @import {App} from './app.js' */
/** @import {Finding, Overview} from './api.js' */
/** @import {Neighbours} from './findings.js' */
/** @import {Panel} from './panel.js' */

/** @typedef {Pick<App, 'state' | 'panels' | 'view'>} Chosen as it was when the details were asked for. */

/** @typedef {{destroy: () => void}} Destroyable */

const NEIGHBOURS = 3; // on either side

/** @type {WeakMap<HTMLElement, object>} the latest question, by container. */
const asked = new WeakMap();

/** @type {WeakMap<HTMLElement, Destroyable[]>} the charts that are drawn, by container. */
const charts = new WeakMap();

/**
 * Fills `container` from the app's state. It draws nothing once another call has replaced this one.
 *
 * @param {HTMLElement} container
 * @param {App} app
 */
export async function showDetails(container, app) {
  const question = {};
  asked.set(container, question);
  const isLatest = () => asked.get(container) === question;
  const chosen = {state: app.state, panels: app.panels, view: app.view}; // they can change while an answer is awaited
  try {
    const card = await cardOf(app);
    if (isLatest()) await fill(container, app, chosen, card, isLatest);
  } catch (error) {
    if (!isLatest()) return;
    container.replaceChildren(element('p', {className: 'error', role: 'alert'}, messageOf(error)));
  }
}

/**
 * @param {HTMLElement} container
 * @param {App} app
 * @param {Chosen} chosen
 * @param {HTMLElement | null} card
 * @param {() => boolean} isLatest
 */
async function fill(container, app, chosen, card, isLatest) {
  const {layer, step} = chosen.panels.length ? chosen.state : {layer: null, step: null};
  const [ofLayer, ofStep] = [element('div', {className: 'body'}), element('div', {className: 'body'})];
  const parts = [
    card,
    layer === null ? null : section(`Layer: ${layer}`, ofLayer),
    step === null ? null : section(`Step ${step}`, ofStep),
  ];
  for (const chart of charts.get(container) ?? []) chart.destroy();
  /** @type {Destroyable[]} */
  const made = [];
  charts.set(container, made); // the next call destroys what this one has drawn by then
  if (container.matches(':hover')) hideTooltip(); // a chart that is taken away does not say that the mouse has left it
  container.replaceChildren(...parts.filter((part) => part !== null));
  if (layer !== null) made.push(...(await chartsOfLayer(ofLayer, layer, app, chosen, isLatest)));
  if (step !== null) made.push(...(await chartsOfStep(ofStep, step, app, chosen, isLatest)));
}

/**
 * @param {HTMLElement} body
 * @param {string} layer
 * @param {App} app
 * @param {Chosen} chosen
 * @param {() => boolean} isLatest
 */
async function chartsOfLayer(body, layer, app, {state, panels, view}, isLatest) {
  return view ? showLayer(body, layer, panels, state, view, (step) => app.hover(step), isLatest) : [];
}

/**
 * @param {HTMLElement} body
 * @param {number} step
 * @param {App} app
 * @param {Chosen} chosen
 * @param {() => boolean} isLatest
 */
async function chartsOfStep(body, step, {statistic}, {state, panels}, isLatest) {
  return statistic && isLatest() ? showProfile(body, step, panels, statistic, state, isLatest) : [];
}

/**
 * @param {string} title
 * @param {HTMLElement} body
 */
function section(title, body) {
  return element('section', {className: 'card', 'aria-label': title}, element('h2', {}, title), body);
}

/**
 * Makes the card of the chosen finding, if there is one.
 *
 * @param {App} app
 */
async function cardOf({state, findings, panels}) {
  for (const panel of panels) {
    const {run, overview} = panel;
    const all = findings[run]?.findings ?? [];
    const index = all.findIndex((each) => keyOf(run, each) === state.finding);
    if (index < 0) continue;
    // The neighbours' figures may be unreadable. The map says so, and the card is shown without them.
    const neighbours = overview ? await neighboursOf(panel, overview, all[index]).catch(() => null) : null;
    return findingCard(run, all, index, overview?.lastStep ?? null, neighbours);
  }
  return null;
}

/**
 * Returns the layers before and after the sick one, in forward order, at the step at which the finding was raised.
 *
 * @param {Panel} panel
 * @param {Overview} overview
 * @param {Finding} finding
 * @returns {Promise<Neighbours | null>} null for a finding of the whole run.
 */
async function neighboursOf({run, order}, {layers}, finding) {
  const place = order.indexOf(layers.indexOf(finding.layer));
  if (place < 0) return null;
  const {header, values} = await askForArray('profile', {run, statistic: 'grad_norm', step: finding.raised_step});
  const value = (/** @type {string} */ row, /** @type {number} */ layer) =>
    header.rows.includes(row) ? values[header.rows.indexOf(row) * layers.length + layer] : NaN;
  const near = order.slice(Math.max(0, place - NEIGHBOURS), place + NEIGHBOURS + 1);
  const rows = near.map((layer) => ({
    layer: layers[layer],
    value: value('highest', layer),
    floor: value('floor', layer),
    ceiling: value('ceiling', layer),
    isSick: layers[layer] === finding.layer,
  }));
  return {step: header.step, rows};
}
