// @ts-check

/** Shows one run: its map, the labels beside it, the axis below it. It keeps what was fetched, and which rows are in view. */

import {ask, askForArray} from './api.js';
import {counted} from './axis.js';
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

/** @import {App} from './app.js' */
/** @import {Finding, Overview} from './api.js' */
/** @import {Box, Node as TreeNode} from './tree.js' */
/** @import {View} from './view.js' */

const MARGIN = 0.25; // of what is in view, fetched on either side of it
const DRAWN = 'gradwatch drawn';
const ROW_HEIGHT = 18;
const [LEAST_HEIGHT, MOST_HEIGHT] = [150, 520];

/** One run. It has no overview, no rows and no map until `load` has succeeded. */
export class Panel {
  /**
   * @param {string} run
   * @param {App} app
   * @param {string} query a part of the names of the layers to show.
   */
  constructor(run, app, query) {
    this.run = run;
    this.app = app;
    this.query = query;
    /** @type {Overview | null} */
    this.overview = null;
    /** @type {TreeNode | null} */
    this.tree = null;
    /** @type {number[][]} the layers of each row, as indices. */
    this.rows = [];
    /** @type {Box[]} */
    this.boxes = [];
    /** @type {View} */
    this.rowView = {from: 0, to: 1};
    /** @type {Set<string>} paths of closed modules. */
    this.collapsed = new Set();
    /** @type {Sheet | null} the map of all steps. */
    this.whole = null;
    /** @type {Sheet | null} a finer map of the steps in view. */
    this.near = null;
    /** @type {{whole: object, near: object}} the latest question for either map. */
    this.asked = {whole: {}, near: {}};
    /** @type {Map<string, number>} indices of layers, by name. */
    this._indices = new Map();
    /** @type {Map<number, number>} rows, by index of a layer. */
    this._rowOfLayer = new Map();
    /** @type {unknown[]} what the labels were last drawn from. */
    this._labelled = [];

    this.notices = new Notices();
    this.plot = element('div', {className: 'plot', tabIndex: 0, role: 'application', 'aria-describedby': 'help'});
    this.cells = element('canvas', {className: 'cells', 'aria-hidden': 'true'});
    this.over = element('canvas', {className: 'over', 'aria-hidden': 'true'});
    this.plot.append(this.cells, this.over);
    this.axis = element('canvas', {className: 'axis', 'aria-hidden': 'true'});
    this.labels = element('div', {className: 'labels', role: 'tree', 'aria-label': `Layers of ${run}`});
    this.readout = element('p', {className: 'readout', role: 'status'});
    this.map = element('div', {className: 'map'}, this.labels, this.plot, element('span'), this.axis);
    const parts = [element('h2', {}, run), this.notices.element, this.map, this.readout];
    this.element = element('section', {className: 'panel'}, ...parts);
    follow(this.plot, movesOf(this));
  }

  /** Reads the run's layers and steps again. */
  async load() {
    await this.notices.guard('load', async () => {
      const before = this.overview?.layers.join();
      /** @type {Overview} */
      const overview = await ask('overview', {run: this.run});
      this.overview = overview;
      this._indices = new Map(overview.layers.map((name, index) => [name, index]));
      this._arrange(overview, before !== overview.layers.join());
    });
  }

  /**
   * Fetches the map of `statistic`.
   *
   * @param {string} statistic
   * @param {View} bounds all steps.
   * @param {View | null} view the steps to fetch, more finely; null for all steps.
   */
  async fetch(statistic, bounds, view = null) {
    if (!this.overview) return;
    const part = view ? 'near' : 'whole';
    if (!view) this.notices.say('near', '');
    const asked = (this.asked[part] = {});
    if (!this.overview.statistics.some(({name}) => name === statistic)) {
      this.whole = null;
      this.near = null;
      this.notices.say('whole', `This run has not logged ${statistic}. Choose another statistic.`);
      return;
    }
    const stretch = this._stretch(bounds, view);
    const isLatest = () => asked === this.asked[part];
    await this.notices.guard(
      part,
      async () => {
        const sheet = new Sheet(await askForArray('cells', {run: this.run, statistic, ...stretch}), statistic);
        if (this.app.scale) await sheet.prepare(this.rows, this.app.scale);
        if (!isLatest()) return;
        this[part] = sheet;
        // The map of all steps and that of the steps in view can arrive in either order after a switch of statistic.
        if (this.near?.statistic !== this.whole?.statistic) this.near = null;
      },
      isLatest,
    );
  }

  /**
   * Returns which steps to ask for, and how many cells. What is beside the view is fetched too, so that panning a little
   * finds it there.
   *
   * @param {View} bounds
   * @param {View | null} view
   */
  _stretch(bounds, view) {
    const width = Math.max(200, Math.min(2000, Math.round(this._width() * (window.devicePixelRatio || 1))));
    if (!view) return {from: Math.max(0, Math.floor(bounds.from)), to: Math.ceil(bounds.to) - 1, width};
    const margin = (view.to - view.from) * MARGIN;
    return {
      from: Math.max(0, Math.floor(view.from - margin)),
      to: Math.ceil(view.to + margin) - 1,
      width: Math.round((1 + 2 * MARGIN) * width),
    };
  }

  /** The maps that were fetched. Later ones are drawn over earlier ones. */
  get sheets() {
    return [this.whole, this.near].filter((sheet) => sheet !== null);
  }

  /** The run's scale of colours, or null where it has none. */
  get scale() {
    return this.whole?.header.scale ?? null;
  }

  /** Layers in forward order, as indices. */
  get order() {
    return this.overview ? treeOf(this.overview.layers, this.overview.depth).layers : [];
  }

  /**
   * Shows the layers whose names hold `query`.
   *
   * @param {string} query
   */
  search(query) {
    this.query = query;
    if (!this.overview) return;
    this._arrange(this.overview);
    this.draw();
  }

  /**
   * Opens the modules around `layer` and moves it into view.
   *
   * @param {string | null} layer
   */
  reveal(layer) {
    const index = this._index(layer);
    if (index === undefined || !this.overview || !this.tree) return;
    modulesAround(this.tree, index).forEach((path) => this.collapsed.delete(path));
    this._arrange(this.overview, false);
    const row = this.rowOf(layer);
    if (row === null) return;
    const {from, to} = this.rowView;
    if (row < from || row >= to)
      this.rowView = panned({from: row - (to - from) / 2, to: row + (to - from) / 2}, 0, this.rowBounds);
  }

  /**
   * Returns the findings that cover `layer`; those of the whole run cover every layer.
   *
   * @param {string} layer
   */
  findingsOf(layer) {
    return this._findings().filter(
      ({layers, layer: worst}) => layers.includes(layer) || worst === layer || worst === '',
    );
  }

  /**
   * Returns the first and the last step of a finding. One that is still open lasts to the end of the run.
   *
   * @param {Finding} finding
   * @returns {[number, number]}
   */
  stretchOf({step, last_step: last, ended}) {
    return [step, ended ? last : Math.max(last, this.overview?.lastStep ?? last)];
  }

  /** Shows all rows. */
  showAllRows() {
    if (this.overview) this.rowView = this.rowBounds;
  }

  /** Draws the map, the axis and the labels. */
  draw() {
    const {view, scale, state} = this.app;
    if (!this.overview || !view) return;
    const [width, height] = [this._width(), this._height()];
    this.plot.style.height = this.labels.style.height = `${height}px`;
    const near = this.near?.covers(view) ? this.near : null;
    const sheets = near ? [near] : this.sheets;
    paintCells(this.cells, sheets, this.rows, scale, view, this.rowView, width, height);
    const shown = near ?? this.whole; // marks of both maps would cover one another
    paintAxis(this.axis, shown ? [shown] : [], view, width);
    this.drawOver(state.step);
    this._label(this.overview, height);
    this.plot.setAttribute('aria-label', this._inWords(this.overview));
    if (shown?.cells) this._note(shown);
  }

  /**
   * Notes what is drawn, for tests and benchmarks that wait for it.
   *
   * @param {Sheet} sheet
   */
  _note({statistic, edges}) {
    if (!performance.getEntriesByName(DRAWN).length) performance.mark(DRAWN); // the first picture
    this.element.dataset.drawn = `${statistic} ${edges[0]} ${edges.at(-1)}`;
  }

  /**
   * Draws the outlines of findings, and the cross at `step` and the chosen layer.
   *
   * @param {number | null} step
   */
  drawOver(step) {
    const {view, state} = this.app;
    const {overview} = this;
    if (!overview || !view) return;
    const outlines = outlinesOf(this._findings(), (finding) => this._placeOf(finding, overview));
    const place = {step, row: this.rowOf(state.layer)};
    paintOver(this.over, outlines, place, view, this.rowView, this._width(), this._height());
  }

  /**
   * Draws the names, if they differ from those of the last frame.
   *
   * @param {Overview} overview
   * @param {number} height
   */
  _label(overview, height) {
    const {layer} = this.app.state;
    const shown = [this.boxes, this.rowView, height, layer];
    if (shown.every((each, index) => each === this._labelled[index])) return;
    this._labelled = shown;
    showLabels(this.labels, this.boxes, this.rowView, height, this._index(layer), {
      toggle: (path) => this._toggle(path),
      pick: (index) => void this.app.choose({layer: overview.layers[index]}),
    });
  }

  _findings() {
    return this.app.findings[this.run]?.findings ?? [];
  }

  /**
   * Lays out the rows anew.
   *
   * @param {Overview} overview
   * @param {boolean} isNew whether to show all rows; otherwise those in view stay.
   */
  _arrange({layers, depth}, isNew = true) {
    this.tree = treeOf(layers, depth, this.query);
    ({rows: this.rows, boxes: this.boxes} = layOut(this.tree, this.collapsed));
    this.map.style.setProperty('--labels', `${wantedWidth(this.boxes)}px`);
    this.notices.say('search', this.rows.length ? '' : `No layer has “${this.query}” in its name.`);
    this._rowOfLayer = new Map(this.rows.flatMap((members, row) => members.map((layer) => [layer, row])));
    this.rowView = isNew ? this.rowBounds : panned(this.rowView, 0, this.rowBounds);
  }

  /**
   * Returns the row of the layer called `name`, or null where it is not shown.
   *
   * @param {string | null} name
   */
  rowOf(name) {
    const index = this._index(name);
    return index === undefined ? null : (this._rowOfLayer.get(index) ?? null);
  }

  /** All rows. */
  get rowBounds() {
    return {from: 0, to: Math.max(1, this.rows.length)};
  }

  _width() {
    return Math.max(100, this.plot.clientWidth);
  }

  _height() {
    return Math.min(MOST_HEIGHT, Math.max(LEAST_HEIGHT, this.rows.length * ROW_HEIGHT));
  }

  /**
   * @param {Finding} finding
   * @param {Overview} overview
   */
  _placeOf(finding, overview) {
    const names = finding.layers.length ? finding.layers : overview.layers;
    const rows = names.map((name) => this.rowOf(name)).filter((row) => row !== null);
    const [from, last] = this.stretchOf(finding);
    return {rows, from, to: last + 1, isSelected: keyOf(this.run, finding) === this.app.state.finding};
  }

  /** @param {string | null} name */
  _index(name) {
    return name === null ? undefined : this._indices.get(name);
  }

  /** @param {string} path */
  _toggle(path) {
    if (!this.overview) return;
    if (!this.collapsed.delete(path)) this.collapsed.add(path);
    this._arrange(this.overview);
    this.draw();
  }

  /**
   * Shows other rows.
   *
   * @param {View} rowView
   */
  setRows(rowView) {
    this.rowView = rowView;
    this.app.redraw();
  }

  /** @param {Overview} overview */
  _inWords({layers, rows, firstStep, lastStep}) {
    return (
      `Map of ${this.run}: ${counted(layers.length, 'layer')}, ${counted(rows, 'logged step')} ` +
      `from ${firstStep} to ${lastStep}, ${counted(this._findings().length, 'finding')}. ` +
      'Arrow keys move, plus and minus zoom, 0 shows all.'
    );
  }
}
