// @ts-check

/** Keeps what the user has chosen, and fetches and draws what a change of it needs. */

import {ask, messageOf} from './api.js';
import {commonScale} from './colours.js';
import {showDetails} from './details.js';
import {keyOf, showFindings} from './findings.js';
import {readAddress, writeAddress} from './host.js';
import {showLegend} from './legend.js';
import {emptyState, page, showRuns, showStatistics} from './page.js';
import {Panel} from './panel.js';
import {fromParameters, toParameters} from './state.js';
import {around, LEAST_STEPS, zoomed} from './view.js';

/** @import {Finding, FindingsAnswer} from './api.js' */
/** @import {Scale} from './colours.js' */
/** @import {State} from './state.js' */
/** @import {View} from './view.js' */

const SETTLED = 120; // milliseconds without a move, after which the steps in view are fetched finely
const ROOM = 25; // steps beside a finding

/** The tab. */
export class App {
  constructor() {
    this.state = fromParameters(readAddress());
    /** @type {string[]} */
    this.runs = [];
    /** @type {Record<string, FindingsAnswer>} by run. */
    this.findings = {};
    /** @type {Panel[]} one for each chosen run. */
    this.panels = [];
    /** @type {Scale | null} of all panels together. */
    this.scale = null;
    /** @type {View | null} all steps of all chosen runs. */
    this.bounds = null;
    /** @type {View | null} the steps in view; the same object as `bounds` while all are. */
    this.view = null;
    this.query = '';
    /** @type {object | null} the latest reading of all runs. */
    this._reading = null;
    /** @type {string | null} what was shown last, to notice that a reload brought nothing new. */
    this._seen = null;
    /** @type {number | null} the next frame, if it is to be drawn. */
    this._frame = null;
    /** @type {number | undefined} */
    this._waiting = undefined;
    this.page = page({
      statistic: (name) => void this.choose({statistic: name}),
      search: (query) => this.search(query),
      zoom: (factor) => this._zoom(factor),
      all: () => this.showAll(),
    });
    this.element = this.page.element;
  }

  /** Reads everything again. What is in view stays. */
  async reload() {
    const reading = (this._reading = {});
    try {
      /** @type {string[]} */
      const runs = await ask('runs');
      const findings = await findingsOf(runs);
      if (reading !== this._reading) return;
      this.runs = runs;
      this.findings = findings;
    } catch (error) {
      this.page.say(messageOf(error));
      return;
    }
    this.page.say('');
    await this._show(true);
  }

  /**
   * Chooses runs, a statistic, a layer, a step or a finding.
   *
   * @param {Partial<State>} changes
   */
  async choose(changes) {
    const before = this.state;
    this.state = {...before, ...changes};
    writeAddress(toParameters(this.state));
    if (changes.runs || (changes.statistic && changes.statistic !== before.statistic)) await this._show();
    else {
      this.redraw();
      this._list();
      await this._details();
    }
  }

  /**
   * Chooses what an address says. After a visit to another tab the address says nothing; then it gets the current choice.
   *
   * @param {Record<string, string>} parameters
   */
  async goTo(parameters) {
    const own = toParameters(this.state);
    if (!Object.keys(parameters).length) writeAddress(own);
    else if (JSON.stringify(parameters) !== JSON.stringify(own)) {
      this.state = fromParameters(parameters);
      await this._show();
      this.panels.forEach((panel) => panel.reveal(this.state.layer));
      this.redraw();
    }
  }

  /**
   * Shows the layers whose names hold `query`, now and in runs that are chosen later.
   *
   * @param {string} query
   */
  search(query) {
    this.query = query;
    this.panels.forEach((panel) => panel.search(query));
  }

  /** @param {number} factor */
  _zoom(factor) {
    const {view, bounds} = this;
    if (view && bounds) this.setView(zoomed(view, factor, (view.from + view.to) / 2, bounds, LEAST_STEPS));
  }

  /**
   * Shows a stretch of steps.
   *
   * @param {View | null} view null for all steps.
   */
  setView(view) {
    if (!this.bounds) return;
    this.view = view ?? this.bounds;
    const isAll = this.view.from <= this.bounds.from && this.view.to >= this.bounds.to;
    this.state = {
      ...this.state,
      from: isAll ? null : Math.floor(this.view.from),
      to: isAll ? null : Math.ceil(this.view.to) - 1,
    };
    this.redraw();
    clearTimeout(this._waiting);
    this._waiting = setTimeout(() => void this._settle(), SETTLED);
  }

  /** Shows all steps of all layers. */
  showAll() {
    this.panels.forEach((panel) => panel.showAllRows());
    this.setView(null);
  }

  /** Draws everything again, in the current colours. */
  repaint() {
    this.redraw();
    void this._details();
  }

  /** Draws at the next frame, once, however often it is called. */
  redraw() {
    this._frame ??= requestAnimationFrame(() => {
      this._frame = null;
      this.panels.forEach((panel) => panel.draw());
    });
  }

  /**
   * Marks the step under the mouse on every map.
   *
   * @param {number | null} step null once the mouse has left.
   */
  hover(step) {
    this.panels.forEach((panel) => panel.drawOver(step ?? this.state.step));
  }

  /** Shows the chosen runs. After a reload that brought nothing new, charts and focus are left alone. */
  async _show(isReload = false) {
    this._place(this._chosen());
    await Promise.all(this.panels.map((panel) => panel.load()));
    const extent = this.panels.map(({run, overview}) => [run, overview?.rows, overview?.lastStep, overview?.depth]);
    const seen = JSON.stringify([this.runs, this.findings, extent]);
    if (isReload && seen === this._seen) {
      await this._fetch(this.panels.filter(({notices}) => notices.hasFailed));
      return;
    }
    this._seen = seen;
    this._bound();
    const overviews = this.panels.map(({overview}) => overview);
    showStatistics(this.page.statistic, overviews, this.state.statistic);
    this._list();
    await this._fetch();
    writeAddress(toParameters(this.state));
    await this._details();
  }

  /**
   * Puts a panel for each chosen run on the page, and keeps those that are there.
   *
   * @param {string[]} chosen
   */
  _place(chosen) {
    this.state.runs ??= chosen.length ? chosen : null; // a run that was asked for may still be loading
    showRuns(this.page.runs, this.runs, this.findings, chosen, (runs) => void this.choose({runs}));
    const kept = new Map(this.panels.map((panel) => [panel.run, panel]));
    this.panels = chosen.map((run) => kept.get(run) ?? new Panel(run, this, this.query));
    const shown = this.panels.length ? this.panels.map((panel) => panel.element) : [emptyState(this.runs)];
    const {children} = this.page.panels;
    const isSame = shown.length === children.length && shown.every((each, index) => each === children[index]);
    if (!isSame) this.page.panels.replaceChildren(...shown);
  }

  /** Returns the runs that were asked for and exist; by default the first one with a finding, or else the first one. */
  _chosen() {
    if (this.state.runs) return this.state.runs.filter((run) => this.runs.includes(run));
    const sick = this.runs.find((run) => this.findings[run]?.findings.length);
    return [sick ?? this.runs[0]].filter((run) => run !== undefined);
  }

  /** Sets `bounds` and `view` from the runs and the state. */
  _bound() {
    const known = this.panels.flatMap(({overview}) => {
      if (!overview?.rows || overview.firstStep === undefined || overview.lastStep === undefined) return [];
      return [{from: overview.firstStep, to: overview.lastStep + 1}];
    });
    if (!known.length) return;
    this.bounds = {
      from: Math.min(...known.map(({from}) => from)),
      to: Math.max(...known.map(({to}) => to)),
    };
    const {from, to} = this.state;
    this.view = from === null || to === null ? this.bounds : around(from, to, 0, this.bounds);
  }

  async _fetch(panels = this.panels) {
    const {bounds} = this;
    if (!bounds || !panels.length) return;
    const {statistic} = this.state;
    await Promise.all(panels.map((panel) => panel.fetch(statistic, bounds)));
    this._rescale();
    if (this.view !== this.bounds) await this._fetchView();
  }

  async _fetchView() {
    const {bounds, view} = this;
    if (!bounds || !view) return;
    await Promise.all(this.panels.map((panel) => panel.fetch(this.state.statistic, bounds, view)));
    this.redraw();
  }

  _rescale() {
    const {label = '', isShare = false} = this.statistic ?? {};
    const scale = commonScale(
      this.panels.map((panel) => panel.scale),
      isShare,
    );
    // A sheet keeps what it has pooled as long as the scale is the same object.
    if (JSON.stringify(scale) !== JSON.stringify(this.scale)) this.scale = scale;
    showLegend(this.page.legend, scale, label);
    this.redraw();
  }

  /** The chosen statistic, or null where no run has logged it. */
  get statistic() {
    const all = this.panels.flatMap(({overview}) => overview?.statistics ?? []);
    return all.find(({name}) => name === this.state.statistic) ?? null;
  }

  async _settle() {
    writeAddress(toParameters(this.state));
    if (this.view !== this.bounds) await this._fetchView();
    await this._details();
  }

  _list() {
    const runs = this.panels.map(({run}) => run);
    const open = (/** @type {string} */ run, /** @type {Finding} */ finding) => void this._open(run, finding);
    showFindings(this.page.findings, runs, this.findings, this.state.finding, open);
  }

  /**
   * Goes to the place of a finding on the map.
   *
   * @param {string} run
   * @param {Finding} finding
   */
  async _open(run, finding) {
    const panel = this.panels.find((each) => each.run === run);
    if (!panel) return;
    const layer = finding.layer || null;
    if (this.bounds) this.setView(viewOf(panel.stretchOf(finding), this.bounds));
    await this.choose({finding: keyOf(run, finding), layer, step: finding.step});
    if (layer) this.panels.forEach((each) => each.reveal(layer));
    this.redraw();
    panel.element.scrollIntoView({block: 'nearest'});
  }

  _details() {
    return showDetails(this.page.details, this);
  }
}

/**
 * Returns the steps around a finding, or null for all steps, on which a long finding is seen well enough.
 *
 * @param {[number, number]} stretch its first and its last step.
 * @param {View} bounds
 */
function viewOf([from, last], bounds) {
  const length = last - from + 1;
  const isVisible = length > (bounds.to - bounds.from) / 20;
  return isVisible ? null : around(from, last, Math.max(ROOM, 2 * length), bounds);
}

/**
 * Asks for the findings of each run. A question that failed becomes a problem of its run.
 *
 * @param {string[]} runs
 * @returns {Promise<Record<string, FindingsAnswer>>}
 */
async function findingsOf(runs) {
  const answers = await Promise.all(
    runs.map((run) => ask('findings', {run}).catch((error) => ({findings: [], problems: [messageOf(error)]}))),
  );
  return Object.fromEntries(runs.map((run, index) => [run, answers[index]]));
}
