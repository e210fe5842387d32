// @ts-check

/** Keeps what the user has chosen, and fetches and draws what a change of it needs. */

import {ask, messageOf} from './api.js';
import {commonScale} from './colours.js';
import {showDetails} from './details.js';
import {firstOf, showFindings} from './findings.js';
import {press} from './gestures.js';
import {readAddress, undo, writeAddress} from './host.js';
import {findingsOf, isLive} from './live.js';
import {dialog, emptyState, page, showStatistics} from './page.js';
import {Panel} from './panel.js';
import {CLOSED, placeOf, statisticOf, viewOf} from './places.js';
import {runTable, showRuns, worstFirst} from './runs.js';
import {fromParameters, toParameters} from './state.js';
import {around, LEAST_STEPS, zoomed} from './view.js';

/** @import {Finding, FindingsAnswer, ListedRun} from './api.js' */
/** @import {State} from './state.js' */
/** @import {View} from './view.js' */

const SETTLED = 120; // milliseconds without a move, after which the steps in view are fetched finely
const ONE_MOVE = 1500; // milliseconds within which moves of the map are one in the browser's history

/** The tab. */
export class App {
  constructor() {
    this.state = fromParameters(readAddress());
    /** @type {string[]} the worst first. */
    this.runs = [];
    /** @type {Map<string, ListedRun>} */
    this.listed = new Map();
    /** @type {Record<string, FindingsAnswer>} by run. */
    this.findings = {};
    /** @type {Panel[]} one for each chosen run. */
    this.panels = [];
    /** @type {View | null} all steps of all chosen runs. */
    this.bounds = null;
    /** @type {View | null} the steps in view; the same object as `bounds` while all are. */
    this.view = null;
    this.query = '';
    this.filter = '';
    /** @type {object | null} the latest reading of all runs. */
    this._reading = null;
    /** @type {string | null} what was shown last, to notice that a reload brought nothing new. */
    this._seen = null;
    /** @type {number | null} the next frame, if it is to be drawn. */
    this._frame = null;
    /** @type {number | undefined} */
    this._waiting = undefined;
    this._movedAt = -Infinity;
    this.page = page({
      choose: (changes) => void this.choose(changes),
      search: (query) => this.search(query),
      filter: (text) => {
        this.filter = text;
        this._listRuns();
      },
      zoom: (factor) => this._zoom(factor),
      all: () => this.showAll(),
      undo,
      table: () => this._showTable(),
      close: () => void this.choose(CLOSED),
    });
    this.element = this.page.element;
    document.addEventListener('keydown', (event) => this._press(event));
  }

  /** Reads what is new. What is in view stays. */
  async reload() {
    const reading = (this._reading = {});
    try {
      /** @type {ListedRun[]} */
      const listed = await ask('runs');
      const findings = await findingsOf(listed, this.listed, this.findings);
      if (reading !== this._reading) return;
      this.listed = new Map(listed.map((each) => [each.run, each]));
      this.findings = findings;
      const runs = listed.map(({run}) => run);
      this.runs = worstFirst(runs, findings);
    } catch (error) {
      this.page.say(messageOf(error));
      return;
    }
    this.page.say('');
    await this._show(true);
  }

  /** Whether something new may come soon: a run is still being written, or the first one is awaited. */
  get isLive() {
    return !this.runs.length || [...this.listed.values()].some(isLive);
  }

  /**
   * Chooses runs, a statistic, a scale, rows, a layer, a step or a finding.
   *
   * @param {Partial<State>} changes
   */
  async choose(changes) {
    const shown = this.statisticName;
    this.state = {...this.state, ...changes};
    this._write(true);
    this._movedAt = -Infinity; // the next move of the map has an entry of its own, after this one
    if (changes.rows) this.panels.forEach((panel) => panel.rows.forget());
    if (changes.rows) this.panels.forEach((panel) => panel.arrange());
    if (changes.scale) this._rescale();
    if (changes.runs || this.statisticName !== shown) await this._show();
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
      this._movedAt = -Infinity; // the next move of the map does not overwrite the entry that somebody went back to
      await this._show();
      this.panels.forEach((panel) => panel.reveal(this.state.layer));
      this.redraw();
    }
  }

  /**
   * Shows the layers that `query` asks for, now and in runs that are chosen later.
   *
   * @param {string} query
   */
  search(query) {
    this.query = query;
    for (const panel of this.panels) {
      panel.rows.forget();
      panel.arrange();
    }
    this.redraw();
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
    if (isAll) this.view = this.bounds;
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
    this.panels.forEach(({rows}) => (rows.view = rows.bounds));
    this.setView(null);
  }

  /** Draws everything again, in the current colours. */
  repaint() {
    this._rescale();
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
    this.panels.forEach((panel) => panel.hover(step));
  }

  /**
   * Marks on every map which steps would be selected.
   *
   * @param {View | null} steps
   */
  showBrush(steps) {
    this.panels.forEach((panel) => panel.showBrush(steps));
  }

  /** Returns how many pixels high a panel can be, so that all of them are seen at once. */
  roomForPanel() {
    return this.page.main.clientHeight / Math.max(1, this.panels.length);
  }

  /** Shows the chosen runs. After a reload that brought nothing new, charts and focus are left alone. */
  async _show(isReload = false) {
    const isFirst = this.state.runs === null;
    this._place(this._chosen());
    await Promise.all(this.panels.map((panel) => panel.load()));
    const extent = this.panels.map(({run, overview}) => [run, overview?.rows, overview?.lastStep, overview?.depth]);
    const seen = JSON.stringify([this.runs, this.findings, extent]);
    if (isReload && seen === this._seen) {
      await this._fetch(this.panels.filter(({notices}) => notices.hasFailed));
      return;
    }
    this._seen = seen;
    if (isFirst) this._openFirst();
    this._bound();
    const overviews = this.panels.map(({overview}) => overview);
    showStatistics(this.page.statistic, overviews, this.statisticName);
    this._list();
    await this._fetch();
    this._write(false);
    await this._details();
  }

  /** Opens the first finding of the run that the tab has chosen, unless the address asks for something. */
  _openFirst() {
    const [panel] = this.panels;
    const finding = panel && firstOf(panel.findings);
    const {layer, step} = this.state;
    if (!finding || layer !== null || step !== null) return;
    this.state = {...this.state, ...placeOf(panel.run, finding)};
    panel.reveal(this.state.layer);
  }

  /**
   * Puts a panel for each chosen run on the page, and keeps those that are there.
   *
   * @param {string[]} chosen
   */
  _place(chosen) {
    this.state.runs ??= chosen.length ? chosen : null; // a run that was asked for may still be loading
    const kept = new Map(this.panels.map((panel) => [panel.run, panel]));
    this.panels = chosen.map((run) => kept.get(run) ?? new Panel(run, this));
    const shown = this.panels.length ? this.panels.map((panel) => panel.element) : [emptyState(this.runs)];
    const {children} = this.page.panels;
    const isSame = shown.length === children.length && shown.every((each, index) => each === children[index]);
    if (!isSame) this.page.panels.replaceChildren(...shown);
  }

  /** Returns the runs that were asked for and exist; by default the worst one. */
  _chosen() {
    if (this.state.runs) return this.state.runs.filter((run) => this.runs.includes(run));
    return this.runs.slice(0, 1);
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
    const name = this.statisticName;
    await Promise.all(panels.map((panel) => panel.fetch(name, bounds)));
    this._rescale();
    if (this.view !== this.bounds) await this._fetchView();
  }

  async _fetchView() {
    const {bounds, view} = this;
    if (!bounds || !view) return;
    const name = this.statisticName;
    await Promise.all(this.panels.map((panel) => panel.fetch(name, bounds, view)));
    this.redraw();
  }

  /** Gives each map its scale of colours: its own, or one for all. */
  _rescale() {
    const part = this.state.scale === 'clamp' ? 'clamp' : 'scale';
    const isShared = this.state.scale === 'shared';
    const all = this.panels.map((panel) => panel.whole?.header[part] ?? null);
    this.panels.forEach((panel, index) => {
      const {isShare = false, isRatio = false} = panel.statistic ?? {};
      panel.colour(commonScale(isShared ? all : [all[index]], isShare, isRatio));
    });
    this.redraw();
  }

  /** The name of the statistic that is shown. */
  get statisticName() {
    return this.state.statistic ?? statisticOf(this.panels);
  }

  /** The statistic that is shown, or null where no run has logged it. */
  get statistic() {
    return this.panels.map((panel) => panel.statistic).find((each) => each !== null) ?? null;
  }

  async _settle() {
    const now = performance.now();
    if (this._write(now - this._movedAt > ONE_MOVE)) this._movedAt = now;
    if (this.view !== this.bounds) await this._fetchView();
    await this._details();
  }

  /**
   * Writes the address, and returns whether that changed it.
   *
   * @param {boolean} isMove whether Back leads to what was shown before.
   */
  _write(isMove) {
    return writeAddress(toParameters(this.state), isMove);
  }

  /** Shows all that lists what is chosen and what could be: runs, findings, the controls. */
  _list() {
    const runs = this.panels.map(({run}) => run);
    const open = (/** @type {string} */ run, /** @type {Finding} */ finding) => void this._open(run, finding);
    showFindings(this.page.findings, runs, this.findings, this.state.finding, open);
    this._listRuns();
    this.page.scale.value = this.state.scale;
    this.page.rows.value = this.state.rows;
    const {layer, step, finding} = this.state;
    const isOpen = this.panels.length > 0 && (layer !== null || step !== null || finding !== null);
    this.page.dock.hidden = !isOpen;
    this.element.classList.toggle('docked', isOpen);
    const isWritten = runs.some((run) => isLive(this.listed.get(run)));
    this.page.live.textContent = isWritten ? '● live' : '';
    this.page.live.title = 'A run that is shown is still being written. New steps appear by themselves.';
  }

  _listRuns() {
    const chosen = this.panels.map(({run}) => run);
    showRuns(this.page.runs, this.runs, this.findings, chosen, this.filter, (runs) => this._chooseRuns(runs));
  }

  /** @param {string[]} runs */
  _chooseRuns(runs) {
    const [run] = runs;
    const finding = runs.length === 1 ? firstOf(this.findings[run]?.findings ?? []) : undefined;
    if (runs.length !== 1) void this.choose({runs});
    else if (finding) void this.choose({runs, ...placeOf(run, finding)}).then(() => this._reveal());
    else void this.choose({runs, ...CLOSED});
  }

  _reveal() {
    this.panels.forEach((panel) => panel.reveal(this.state.layer));
    this.redraw();
  }

  _showTable() {
    const choose = (/** @type {string[]} */ runs) => {
      shown.close();
      this._chooseRuns(runs);
    };
    const shown = dialog('Runs', runTable(this.runs, this.findings, choose));
    shown.addEventListener('close', () => shown.remove());
    this.element.append(shown);
    shown.showModal();
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
    if (this.bounds) this.setView(viewOf(panel.stretchOf(finding), this.bounds));
    await this.choose(placeOf(run, finding));
    this._reveal();
    panel.element.scrollIntoView({block: 'nearest'});
  }

  /**
   * Does what keys ask for wherever the focus is, but for fields that take text.
   *
   * @param {KeyboardEvent} event
   */
  _press(event) {
    const {target} = event;
    const isText = target instanceof HTMLElement && target.closest('input[type=search], select, dialog');
    if (isText || event.defaultPrevented) return;
    if (event.key === 'Escape') void this.choose(CLOSED);
    else if (event.key === 'z' && (event.ctrlKey || event.metaKey)) undo();
    else if (!event.key.startsWith('Arrow') && this.panels.length) press(event, this.panels[0].moves);
  }

  _details() {
    return showDetails(this.page.details, this);
  }
}
