/** One run: its map, the labels beside it, the axis below; what it fetched and how much of it is in view. */

import {ask, askForArray} from './api.js';
import {element} from './dom.js';
import {keyOf} from './findings.js';
import {follow} from './gestures.js';
import {showLabels, wantedWidth} from './labels.js';
import {movesOf} from './moves.js';
import {Notices} from './notices.js';
import {outlinesOf} from './outlines.js';
import {paintAxis, paintCells, paintOver} from './painter.js';
import {Sheet} from './sheet.js';
import {layOut, modulesAround, treeOf} from './tree.js';
import {panned} from './view.js';

const MARGIN = 0.25; // of what is in view, fetched beside it
const DRAWN = 'gradwatch drawn';
const ROW_HEIGHT = 18;
const [LEAST_HEIGHT, MOST_HEIGHT] = [150, 520];

export class Panel {
  /**
   * @param {object} app {state, view, bounds, scale, told, choose(changes), setView(view), hover(step)}.
   * @param {string} query what the names of the layers shown must hold.
   */
  constructor(run, app, query) {
    [this.run, this.app, this.query] = [run, app, query];
    [this.collapsed, this.whole, this.near] = [new Set(), null, null]; // sheets: of all steps, of those in view
    this.asked = {}; // the latest question for either
    this.notices = new Notices();
    this.plot = element('div', {className: 'plot', tabIndex: 0, role: 'application', 'aria-describedby': 'help'});
    this.canvases = ['cells', 'over'].map((className) => element('canvas', {className, 'aria-hidden': 'true'}));
    this.plot.append(...this.canvases);
    this.axis = element('canvas', {className: 'axis', 'aria-hidden': 'true'});
    this.labels = element('div', {className: 'labels', role: 'tree', 'aria-label': `Layers of ${run}`});
    this.readout = element('p', {className: 'readout', role: 'status'});
    this.map = element('div', {className: 'map'}, this.labels, this.plot, element('span'), this.axis);
    const parts = [element('h2', {}, run), this.notices.element, this.map, this.readout];
    this.element = element('section', {className: 'panel'}, ...parts);
    follow(this.plot, movesOf(this));
  }

  /** Reads the table and findings again. */
  async load() {
    await this.notices.guard('load', async () => {
      const before = this.overview?.layers.join();
      this.overview = await ask('overview', {run: this.run});
      this._indices = new Map(this.overview.layers.map((name, index) => [name, index]));
      this._arrange(before !== this.overview.layers.join());
    });
  }

  /** Fetches the map of `statistic`: all of it, or what `view` shows, drawn over that. */
  async fetch(statistic, bounds, view = null) {
    if (!this.overview) return;
    const part = view ? 'near' : 'whole';
    if (!view) this.notices.say('near', '');
    const asked = (this.asked[part] = {});
    if (!this.overview.statistics.some(({name}) => name === statistic)) {
      [this.whole, this.near] = [null, null];
      this.notices.say('whole', `This run has not logged ${statistic}. Choose another statistic.`);
      return;
    }
    const width = Math.max(200, Math.min(2000, Math.round(this._width() * (window.devicePixelRatio || 1))));
    const margin = view ? (view.to - view.from) * MARGIN : 0; // so that a short way of panning is there already
    const [from, to] = view ? [view.from - margin, view.to + margin] : [bounds.from, bounds.to];
    const stretch = {
      from: Math.max(0, Math.floor(from)),
      to: Math.ceil(to) - 1,
      width: view ? Math.round((1 + 2 * MARGIN) * width) : width,
    };
    const isLatest = () => asked === this.asked[part];
    await this.notices.guard(
      part,
      async () => {
        const sheet = new Sheet(await askForArray('cells', {run: this.run, statistic, ...stretch}), statistic);
        if (this.app.scale) await sheet.prepare(this.rows, this.app.scale);
        if (!isLatest()) return;
        this[part] = sheet;
        if (this.near?.statistic !== this.whole?.statistic) this.near = null; // the one of them came late
      },
      isLatest,
    );
  }

  /** What was fetched, later ones to be drawn over earlier ones. */
  get sheets() {
    return [this.whole, this.near].filter(Boolean);
  }

  /** The run's scale of colours, null where it has none. */
  get scale() {
    return this.whole?.header.scale ?? null;
  }

  /** Layers in forward order, as indices. */
  get order() {
    return treeOf(this.overview.layers, this.overview.depth).layers;
  }

  search(query) {
    this.query = query;
    if (!this.overview) return;
    this._arrange();
    this.draw();
  }

  /** Opens the modules around `layer` and moves it into view. */
  reveal(layer) {
    const index = this._index(layer);
    if (index === undefined) return;
    modulesAround(this.tree, index).forEach((path) => this.collapsed.delete(path));
    this._arrange(false);
    const row = this.rowOf(layer);
    if (row === null) return;
    const {from, to} = this.rowView;
    if (row < from || row >= to)
      this.rowView = panned({from: row - (to - from) / 2, to: row + (to - from) / 2}, 0, this.rowBounds);
  }

  findingsOf(layer) {
    return this._findings().filter(
      ({layers, layer: worst}) => layers.includes(layer) || worst === layer || worst === '',
    );
  }

  /** First and last step of a finding; one that goes on lasts to the end of the run. */
  stretchOf({step, last_step: last, ended}) {
    return [step, ended ? last : Math.max(last, this.overview?.lastStep ?? last)];
  }

  showAllRows() {
    if (this.rows) this.rowView = this.rowBounds;
  }

  draw() {
    if (!this.overview || !this.app.view) return;
    const {view, scale, state} = this.app;
    const [width, height] = [this._width(), this._height()];
    this.plot.style.height = this.labels.style.height = `${height}px`;
    const near = this.near?.covers(view) ? this.near : null;
    paintCells(this.canvases[0], near ? [near] : this.sheets, this.rows, scale, view, this.rowView, width, height);
    const shown = near ?? this.whole; // marks of both would lie over one another
    paintAxis(this.axis, shown ? [shown] : [], view, width);
    this.drawOver(state.step);
    this._label(height);
    this.plot.setAttribute('aria-label', this._inWords());
    if (shown?.cells) {
      if (!performance.getEntriesByName(DRAWN).length) performance.mark(DRAWN); // the first picture; for whoever waits
      this.element.dataset.drawn = `${shown.statistic} ${shown.edges[0]} ${shown.edges.at(-1)}`;
    }
  }

  /** Outlines, and the cross at `step`. */
  drawOver(step) {
    if (!this.rows) return;
    const place = {step, row: this.rowOf(this.app.state.layer)};
    paintOver(
      this.canvases[1],
      outlinesOf(this._findings(), (finding) => this._placeOf(finding)),
      place,
      this.app.view,
      this.rowView,
      this._width(),
      this._height(),
    );
  }

  /** The names, where they are not the same as at the last frame. */
  _label(height) {
    const shown = [this.boxes, this.rowView, height, this.app.state.layer];
    if (shown.every((each, index) => each === this._labelled?.[index])) return;
    this._labelled = shown;
    showLabels(this.labels, this.boxes, this.rowView, height, this._index(this.app.state.layer), {
      toggle: (path) => this._toggle(path),
      pick: (layer) => this.app.choose({layer: this.overview.layers[layer]}),
    });
  }

  _findings() {
    return this.app.told[this.run]?.findings ?? [];
  }

  _arrange(isNew = true) {
    this.tree = treeOf(this.overview.layers, this.overview.depth, this.query);
    ({rows: this.rows, boxes: this.boxes} = layOut(this.tree, this.collapsed));
    this.map.style.setProperty('--labels', `${wantedWidth(this.boxes)}px`);
    this.notices.say('search', this.rows.length ? '' : `No layer’s name holds “${this.query}”.`);
    this._rows = new Map(this.rows.flatMap((layers, row) => layers.map((layer) => [layer, row])));
    const whole = this.rowBounds;
    this.rowView = isNew || !this.rowView ? whole : panned(this.rowView, 0, whole);
  }

  /** The row of the layer called `name`, null where it is not shown. */
  rowOf(name) {
    return this._rows?.get(this._index(name)) ?? null;
  }

  get rowBounds() {
    return {from: 0, to: Math.max(1, this.rows.length)};
  }

  _width() {
    return Math.max(100, this.plot.clientWidth);
  }

  _height() {
    return Math.min(MOST_HEIGHT, Math.max(LEAST_HEIGHT, this.rows.length * ROW_HEIGHT));
  }

  _placeOf(finding) {
    const names = finding.layers.length ? finding.layers : this.overview.layers;
    const rows = names.map((name) => this.rowOf(name)).filter((row) => row !== null);
    const [from, last] = this.stretchOf(finding);
    return {rows, from, to: last + 1, isSelected: keyOf(this.run, finding) === this.app.state.finding};
  }

  _index(name) {
    return this._indices?.get(name);
  }

  _toggle(path) {
    if (!this.collapsed.delete(path)) this.collapsed.add(path);
    this._arrange();
    this.draw();
  }

  setRows(rowView) {
    this.rowView = rowView;
    this.app.redraw();
  }

  _inWords() {
    const {layers, rows, firstStep, lastStep} = this.overview;
    return (
      `Map of ${this.run}: ${layers.length} layers, ${rows} logged steps from ${firstStep} to ${lastStep}, ` +
      `${this._findings().length} findings. Arrow keys move, plus and minus zoom, 0 shows all.`
    );
  }
}
