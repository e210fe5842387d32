// @ts-check

/** Keeps which layers of a run are rows of its map, which modules are open, and which rows are in view. */

import {allModules, layOut, modulesAround, openedAtFirst, treeOf} from './tree.js';
import {panned} from './view.js';

/** @import {Overview} from './api.js' */
/** @import {Box, Node as TreeNode} from './tree.js' */
/** @import {View} from './view.js' */

/** The rows of one map. */
export class Rows {
  constructor() {
    /** @type {TreeNode | null} */
    this.tree = null;
    /** @type {number[][]} the layers of each row, as indices. */
    this.members = [];
    /** @type {Box[]} */
    this.boxes = [];
    /** @type {View} rows in view. */
    this.view = {from: 0, to: 1};
    /** @type {Set<string> | null} paths of open modules; null before the user or a finding has opened or closed one. */
    this._opened = null;
    /** @type {Set<string>} paths of the modules that are open now. */
    this._shown = new Set();
    /** @type {Map<string, number>} indices of layers, by name. */
    this._indices = new Map();
    /** @type {Map<number, number>} rows, by index of a layer. */
    this._rowOfLayer = new Map();
  }

  /**
   * Lays out the rows.
   *
   * @param {Overview} overview
   * @param {(layer: number) => boolean} isWanted
   * @param {boolean} isAllOpen whether modules are open that nobody has closed.
   * @param {boolean} isNew whether to show all rows; otherwise those in view stay.
   */
  arrange({layers, depth}, isWanted, isAllOpen, isNew) {
    const wasWhole = this.view.from <= 0 && this.view.to >= this.bounds.to;
    this._indices = new Map(layers.map((name, index) => [name, index]));
    this.tree = treeOf(layers, depth, isWanted);
    this._shown = this._opened ?? (isAllOpen ? allModules(this.tree) : openedAtFirst(this.tree));
    ({rows: this.members, boxes: this.boxes} = layOut(this.tree, this._shown));
    this._rowOfLayer = new Map(this.members.flatMap((members, row) => members.map((layer) => [layer, row])));
    this.view = isNew || wasWhole ? this.bounds : panned(this.view, 0, this.bounds);
  }

  /** All rows. */
  get bounds() {
    return {from: 0, to: Math.max(1, this.members.length)};
  }

  /** Forgets what the user has opened and closed. */
  forget() {
    this._opened = null;
  }

  /**
   * Opens or closes a module.
   *
   * @param {string} path
   */
  toggle(path) {
    const opened = new Set(this._shown);
    if (!opened.delete(path)) opened.add(path);
    this._opened = opened;
  }

  /**
   * Opens the modules around a layer.
   *
   * @param {string} name
   */
  open(name) {
    const index = this.indexOf(name);
    if (index === undefined || !this.tree) return;
    this._opened = new Set([...this._shown, ...modulesAround(this.tree, index)]);
  }

  /**
   * Moves the row of a layer into view.
   *
   * @param {string} name
   */
  scrollTo(name) {
    const row = this.rowOf(name);
    const {from, to} = this.view;
    if (row === null || (row >= from && row < to)) return;
    this.view = panned({from: row - (to - from) / 2, to: row + (to - from) / 2}, 0, this.bounds);
  }

  /** @param {string | null} name */
  indexOf(name) {
    return name === null ? undefined : this._indices.get(name);
  }

  /**
   * Returns the row of the layer called `name`, or null where it is not shown.
   *
   * @param {string | null} name
   */
  rowOf(name) {
    const index = this.indexOf(name);
    return index === undefined ? null : (this._rowOfLayer.get(index) ?? null);
  }
}
