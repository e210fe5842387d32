/** The tab: what is looked at, which panels that takes, and what is fetched and drawn when it changes. */

import {ask} from './api.js';
import {commonScale} from './colours.js';
import {showDetails} from './details.js';
import {keyOf, showFindings} from './findings.js';
import {readAddress, writeAddress} from './host.js';
import {showLegend} from './legend.js';
import {emptyState, page, showRuns, showStatistics} from './page.js';
import {Panel} from './panel.js';
import {fromParameters, toParameters} from './state.js';
import {around, LEAST_STEPS, zoomed} from './view.js';

const SETTLED = 120; // milliseconds without a move before what is in view is fetched finely
const ROOM = 25; // steps beside a finding

export class App {
  constructor() {
    this.state = fromParameters(readAddress());
    [this.runs, this.told, this.panels, this.scale, this.bounds, this.view] = [[], {}, [], null, null, null];
    this.query = '';
    this.page = page({
      statistic: (name) => this.choose({statistic: name}),
      search: (query) => this.search(query),
      zoom: (factor) =>
        this.view &&
        this.setView(zoomed(this.view, factor, (this.view.from + this.view.to) / 2, this.bounds, LEAST_STEPS)),
      all: () => this.showAll(),
    });
    this.element = this.page.element;
  }

  /** Reads everything again; what is in view stays. */
  async reload() {
    const reading = (this._reading = {});
    try {
      const runs = await ask('runs');
      const told = await findingsOf(runs);
      if (reading !== this._reading) return;
      [this.runs, this.told] = [runs, told];
    } catch (error) {
      this.page.say(error.message);
      return;
    }
    this.page.say('');
    await this._show(true);
  }

  /** Changes what is looked at. */
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

  /** Looks at what an address says; one that says nothing, as after a look at another tab, is told what is looked at. */
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

  /** Shows the layers whose names hold `query`, now and in runs that are ticked later. */
  search(query) {
    this.query = query;
    this.panels.forEach((panel) => panel.search(query));
  }

  /** Shows `view`, a stretch of steps; null: all. */
  setView(view) {
    this.view = view ?? this.bounds;
    const isAll = this.view.from <= this.bounds.from && this.view.to >= this.bounds.to;
    this.state = {
      ...this.state,
      from: isAll ? null : Math.floor(this.view.from),
      to: isAll ? null : Math.ceil(this.view.to) - 1,
    };
    this.redraw();
    clearTimeout(this._waiting);
    this._waiting = setTimeout(() => this._settle(), SETTLED);
  }

  /** All steps of all layers. */
  showAll() {
    this.panels.forEach((panel) => panel.showAllRows());
    if (this.bounds) this.setView(null);
  }

  /** Draws everything anew, in the colours of now. */
  repaint() {
    this.redraw();
    void this._details();
  }

  /** Draws at the next frame, once, however often it is asked. */
  redraw() {
    this._frame ??= requestAnimationFrame(() => {
      this._frame = null;
      this.panels.forEach((panel) => panel.draw());
    });
  }

  /** The mouse is over `step`, on the map or on a chart; null: it has left. */
  hover(step) {
    this.panels.forEach((panel) => panel.drawOver(step ?? this.state.step));
  }

  /** Shows the runs that are chosen; after a reload that brought nothing new, charts and focus are left alone. */
  async _show(isReload = false) {
    const chosen = this._chosen();
    this.state.runs ??= chosen.length ? chosen : null; // a run that was asked for may still be loading
    showRuns(this.page.runs, this.runs, this.told, chosen, (runs) => this.choose({runs}));
    const kept = new Map(this.panels.map((panel) => [panel.run, panel]));
    this.panels = chosen.map((run) => kept.get(run) ?? new Panel(run, this, this.query));
    const shown = this.panels.length ? this.panels.map((panel) => panel.element) : [emptyState(this.runs)];
    const isSame = this.panels.length && shown.every((each, index) => each === this.page.panels.children[index]);
    if (!isSame || shown.length !== this.page.panels.children.length) this.page.panels.replaceChildren(...shown);
    await Promise.all(this.panels.map((panel) => panel.load()));
    const extent = this.panels.map(({run, overview}) => [run, overview?.rows, overview?.lastStep, overview?.depth]);
    const seen = JSON.stringify([this.runs, this.told, extent]);
    if (isReload && seen === this._seen) {
      await this._fetch(this.panels.filter(({notices}) => notices.hasFailed));
      return;
    }
    this._seen = seen;
    this._bound();
    showStatistics(this.page.statistic, this.panels, this.state.statistic);
    this._list();
    await this._fetch();
    writeAddress(toParameters(this.state));
    await this._details();
  }

  /** The runs that were asked for and are there; by default the first with a finding, or else the first. */
  _chosen() {
    if (this.state.runs) return this.state.runs.filter((run) => this.runs.includes(run));
    const sick = this.runs.find((run) => this.told[run]?.findings.length);
    return [sick ?? this.runs[0]].filter((run) => run !== undefined);
  }

  _bound() {
    const known = this.panels.map(({overview}) => overview).filter((overview) => overview?.rows);
    if (!known.length) return;
    this.bounds = {
      from: Math.min(...known.map((each) => each.firstStep)),
      to: Math.max(...known.map((each) => each.lastStep)) + 1,
    };
    const {from, to} = this.state;
    this.view = from === null ? this.bounds : around(from, to, 0, this.bounds);
  }

  async _fetch(panels = this.panels) {
    if (!this.bounds || !panels.length) return;
    const {statistic} = this.state;
    await Promise.all(panels.map((panel) => panel.fetch(statistic, this.bounds)));
    this._rescale();
    if (this.view !== this.bounds) await this._fetchView();
  }

  async _fetchView() {
    await Promise.all(this.panels.map((panel) => panel.fetch(this.state.statistic, this.bounds, this.view)));
    this.redraw();
  }

  _rescale() {
    const {label = '', isShare = false} = this.statistic ?? {};
    const scale = commonScale(
      this.panels.map((panel) => panel.scale),
      isShare,
    );
    if (JSON.stringify(scale) !== JSON.stringify(this.scale)) this.scale = scale; // the same object keeps what is pooled
    showLegend(this.page.legend, scale, label);
    this.redraw();
  }

  /** What is said of the statistic in view. */
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
    showFindings(this.page.findings, runs, this.told, this.state.finding, (run, finding) => this._open(run, finding));
  }

  /** Goes to the place of a finding on the map. */
  async _open(run, finding) {
    const panel = this.panels.find((each) => each.run === run);
    const [from, last] = panel.stretchOf(finding);
    const layer = finding.layer || null;
    if (this.bounds) {
      const length = last - from + 1;
      const isVisible = length > (this.bounds.to - this.bounds.from) / 20;
      this.setView(isVisible ? null : around(from, last, Math.max(ROOM, 2 * length), this.bounds));
    }
    await this.choose({finding: keyOf(run, finding), layer, step: finding.step});
    this.panels.forEach((each) => layer && each.reveal(layer));
    this.redraw();
    panel.element.scrollIntoView({block: 'nearest'});
  }

  _details() {
    return showDetails(this.page.details, this);
  }
}

/** {run: {findings, problems}}; what went wrong is a problem of that run. */
async function findingsOf(runs) {
  const answers = await Promise.all(
    runs.map((run) => ask('findings', {run}).catch((error) => ({findings: [], problems: [error.message]}))),
  );
  return Object.fromEntries(runs.map((run, index) => [run, answers[index]]));
}
