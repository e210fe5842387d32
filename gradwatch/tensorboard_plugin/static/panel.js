// @ts-check

/** Shows one run: strips, the map below them, the labels beside it, the axis. It keeps what was fetched. */

import {ask, askForArray} from './api.js';
import {counted} from './axis.js';
import {element} from './dom.js';
import {keyOf} from './findings.js';
import {follow, press} from './gestures.js';
import {showLabels, wantedWidth} from './labels.js';
import {matcher, weightsOf} from './layers.js';
import {showLegend} from './legend.js';
import {StepLines} from './lines.js';
import {movesOf, stripMovesOf} from './moves.js';
import {Notices} from './notices.js';
import {outlinesOf} from './outlines.js';
import {AXIS_HEIGHT, paintAxis, paintCells, paintOver} from './painter.js';
import {Rows} from './rows.js';
import {titleOf} from './runs.js';
import {Sheet} from './sheet.js';
import {courseOf, paintStrips, stripNames, STRIPS} from './strips.js';
import {treeOf} from './tree.js';

/** @import {App} from './app.js' */
/** @import {Finding, Overview} from './api.js' */
/** @import {Scale} from './colours.js' */
/** @import {View} from './view.js' */

const MARGIN = 0.25; // of what is in view, fetched on either side of it
const DRAWN = 'gradwatch drawn';
const MOST_ROW_HEIGHT = 72; // a network of few layers fills its place, too
const LEAST_HEIGHT = 150;
const STRIP_HEIGHT = 30;
const GAPS = 20; // above and below the heading, and below the axis

/** One run. It has no overview, no rows and no map until `load` has succeeded. */
export class Panel {
  /**
   * @param {string} run
   * @param {App} app
   */
  constructor(run, app) {
    this.run = run;
    this.app = app;
    this.rows = new Rows();
    /** @type {Overview | null} */
    this.overview = null;
    /** @type {Sheet | null} the map of all steps. */
    this.whole = null;
    /** @type {Sheet | null} a finer map of the steps in view. */
    this.near = null;
    /** @type {{whole: object, near: object}} the latest question for either map. */
    this.asked = {whole: {}, near: {}};
    /** @type {Scale | null} of colours. */
    this.colours = null;
    /** @type {unknown[]} what the labels were last drawn from. */
    this._labelled = [];

    this.notices = new Notices();
    this.names = stripNames();
    this.legend = element('div', {className: 'legend'});
    this.strips = element('canvas', {className: 'strips', role: 'img', 'aria-label': `Strips of ${run}`});
    this.plot = element('div', {className: 'plot', tabIndex: 0, role: 'application', 'aria-describedby': 'help'});
    this.cells = element('canvas', {className: 'cells', 'aria-hidden': 'true'});
    this.over = element('canvas', {className: 'over', 'aria-hidden': 'true'});
    this.plot.append(this.cells, this.over);
    this.axis = element('canvas', {className: 'axis', 'aria-hidden': 'true'});
    this.labels = element('div', {className: 'labels', role: 'tree', 'aria-label': `Layers of ${run}`});
    this.readout = element('p', {className: 'readout', role: 'status'});
    this.lines = new StepLines();
    this.map = this._layOut();
    this.heading = element('div', {className: 'heading'}, element('h2', {}, titleOf(run)), this.legend);
    this.element = element('section', {className: 'panel'}, this.heading, this.notices.element, this.map, this.readout);
    this.moves = movesOf(this);
    follow(this.plot, this.moves);
    follow(this.strips, stripMovesOf(this, this.moves));
    this.plot.addEventListener('keydown', (event) => press(event, this.moves));
  }

  _layOut() {
    const {place, cursor, brush} = this.lines;
    const marks = ['clipped', 'skipped'].map((className) => element('div', {className}, className));
    return element(
      'div',
      {className: 'map'},
      element(
        'div',
        {className: 'names'},
        this.names.element,
        this.labels,
        element('div', {className: 'marks'}, ...marks),
      ),
      element('div', {className: 'stage'}, this.strips, this.plot, this.axis, place, cursor, brush),
    );
  }

  /** Reads the run's layers and steps again. */
  async load() {
    await this.notices.guard('load', async () => {
      const before = this.overview?.layers.join();
      this.overview = /** @type {Overview} */ (await ask('overview', {run: this.run}));
      this.arrange(before !== this.overview.layers.join());
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
        if (this.colours) await sheet.prepare(this.rows.members, this.colours);
        if (!isLatest()) return;
        sheet.course = this[part]?.course ?? null; // until its own has come
        this[part] = sheet;
        // The map of all steps and that of the steps in view can arrive in either order after a switch of statistic.
        if (this.near?.statistic !== this.whole?.statistic) this.near = null;
        void this._fetchCourse(sheet, stretch);
      },
      isLatest,
    );
  }

  /**
   * Fetches the strips over the steps of a map, which is drawn before they have come.
   *
   * @param {Sheet} sheet
   * @param {Record<string, number>} stretch
   */
  async _fetchCourse(sheet, stretch) {
    await this.notices.guard('course', async () => {
      sheet.course = courseOf(await askForArray('course', {run: this.run, ...stretch}));
      this.app.redraw();
    });
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

  /** The map that shows what is in view: the finer one if it has all of it. */
  get shown() {
    const {view} = this.app;
    return view && this.near?.covers(view) ? this.near : this.whole;
  }

  /** The strips that show what is in view. */
  get course() {
    return this.shown?.course ?? null;
  }

  /** The statistic that is shown, or null where the run has not logged it. */
  get statistic() {
    return this.overview?.statistics.find(({name}) => name === this.app.statisticName) ?? null;
  }

  /** Layers in forward order, as indices. */
  get order() {
    return this.overview ? treeOf(this.overview.layers, this.overview.depth).layers : [];
  }

  /**
   * Colours the map by `scale`, and shows what its colours mean.
   *
   * @param {Scale | null} scale
   */
  colour(scale) {
    // A sheet keeps what it has pooled as long as the scale is the same object.
    if (JSON.stringify(scale) !== JSON.stringify(this.colours)) this.colours = scale;
    showLegend(this.legend, scale);
  }

  /**
   * Lays out the rows anew.
   *
   * @param {boolean} isNew whether to show all rows; otherwise those in view stay.
   */
  arrange(isNew = true) {
    if (!this.overview) return;
    const {query, state} = this.app;
    const isSearch = Boolean(query.trim());
    this.rows.arrange(this.overview, this._wanted(this.overview), isSearch || state.rows !== 'blocks', isNew);
    this.map.style.setProperty('--labels', `${wantedWidth(this.rows.boxes)}px`);
    const isEmpty = !this.rows.members.length;
    this.notices.say('search', isEmpty ? `No layer has “${query}” in its name.` : '');
  }

  /**
   * Returns the layers to show: those that are searched; without a search weights, or all, and always those of findings.
   *
   * @param {Overview} overview
   * @returns {(layer: number) => boolean}
   */
  _wanted({layers, size}) {
    const {query, state} = this.app;
    const isFound = matcher(query);
    if (query.trim()) return (layer) => isFound(layers[layer]);
    if (state.rows === 'all') return () => true;
    const isWeight = weightsOf(layers, size);
    const sick = new Set(this.findings.map(({layer}) => layer));
    return (layer) => isWeight[layer] || sick.has(layers[layer]) || layers[layer] === state.layer;
  }

  /**
   * Opens the modules around `layer` and moves it into view.
   *
   * @param {string | null} layer
   */
  reveal(layer) {
    if (layer === null || !this.overview) return;
    if (this.rows.rowOf(layer) === null) this.arrange(false); // a bias is a row once it is chosen
    this.rows.open(layer);
    this.arrange(false);
    this.rows.scrollTo(layer);
  }

  /** The findings of the run, by onset. */
  get findings() {
    return this.app.findings[this.run]?.findings ?? [];
  }

  /**
   * Returns the findings that cover `layer`; those of the whole run cover every layer.
   *
   * @param {string} layer
   */
  findingsOf(layer) {
    return this.findings.filter(({layers, layer: worst}) => layers.includes(layer) || worst === layer || worst === '');
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

  /** Draws the strips, the map, the axis and the labels. */
  draw() {
    const {view, state} = this.app;
    if (!this.overview || !view) return;
    const [width, height] = [this._width(), this._height()];
    this.plot.style.height = this.labels.style.height = `${height}px`;
    const {shown, rows} = this;
    const sheets = shown && shown === this.near ? [shown] : this.sheets;
    paintCells(this.cells, sheets, rows.members, this.colours, view, rows.view, width, height);
    paintAxis(this.axis, shown ? [shown] : [], view, width); // marks of both maps would cover one another
    paintStrips(this.strips, this.course, view, width, STRIP_HEIGHT);
    const outlines = outlinesOf(this.findings, (finding) => this._placeOf(finding, this.overview?.layers ?? []));
    paintOver(this.over, outlines, rows.rowOf(state.layer), view, rows.view, width, height);
    this.lines.mark('place', state.step, view, width);
    this.names.showAt(this.course, state.step);
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
   * Shows where the mouse is, on any map.
   *
   * @param {number | null} step
   */
  hover(step) {
    this.lines.mark('cursor', step, this.app.view, this._width());
    this.names.showAt(this.course, step ?? this.app.state.step);
  }

  /**
   * Shows which steps would be selected.
   *
   * @param {View | null} steps
   */
  showBrush(steps) {
    this.lines.select(steps, this.app.view, this._width());
  }

  /**
   * Draws the names, if they differ from those of the last frame.
   *
   * @param {Overview} overview
   * @param {number} height
   */
  _label(overview, height) {
    const {boxes, view} = this.rows;
    const {layer} = this.app.state;
    const shown = [boxes, view, height, layer, this.findings];
    if (shown.every((each, index) => each === this._labelled[index])) return;
    this._labelled = shown;
    const sick = new Set(this.findings.flatMap((finding) => this.rows.indexOf(finding.layer) ?? []));
    const layers = {selected: this.rows.indexOf(layer), sick};
    showLabels(this.labels, boxes, view, height, layers, {
      toggle: (path) => this._toggle(path),
      pick: (index) => void this.app.choose({layer: overview.layers[index]}),
    });
  }

  /** @param {string} path */
  _toggle(path) {
    this.rows.toggle(path);
    this.arrange();
    this.draw();
  }

  /**
   * Shows other rows.
   *
   * @param {View} rowView
   */
  setRows(rowView) {
    this.rows.view = rowView;
    this.app.redraw();
  }

  _width() {
    return Math.max(100, this.plot.clientWidth);
  }

  _height() {
    const above = GAPS + this.heading.offsetHeight + this.notices.element.offsetHeight + STRIPS.length * STRIP_HEIGHT;
    const room = this.app.roomForPanel() - above - AXIS_HEIGHT;
    return Math.max(LEAST_HEIGHT, Math.min(room, this.rows.members.length * MOST_ROW_HEIGHT));
  }

  /**
   * @param {Finding} finding
   * @param {string[]} layers
   */
  _placeOf(finding, layers) {
    const names = finding.layer ? finding.layers : layers;
    const rows = names.map((name) => this.rows.rowOf(name)).filter((row) => row !== null);
    const [from, last] = this.stretchOf(finding);
    return {rows, from, to: last + 1, isSelected: keyOf(this.run, finding) === this.app.state.finding};
  }

  /** @param {Overview} overview */
  _inWords({layers, rows, firstStep, lastStep}) {
    return (
      `Map of ${this.run}: ${counted(layers.length, 'layer')}, ${counted(rows, 'logged step')} ` +
      `from ${firstStep} to ${lastStep}, ${counted(this.findings.length, 'finding')}. ` +
      'Arrow keys move, plus and minus zoom, 0 shows all.'
    );
  }
}
