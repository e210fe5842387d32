// @ts-check

/**
 * Holds one answer about the map: a stretch of steps at some width. It turns values into levels and pools them into the rows
 * that are shown. The result is kept until rows or scale change, so zooming and panning only pool pixels.
 */

import {levels} from './colours.js';
import {poolRows} from './pooling.js';

/** @import {ArrayAnswer, CellsHeader} from './api.js' */
/** @import {Course} from './strips.js' */
/** @import {Scale} from './colours.js' */
/** @import {View} from './view.js' */

const SLICE = 100_000; // values: a few milliseconds' work

const pause = () => new Promise((resolve) => setTimeout(resolve));

/** @typedef {{levels: Uint8Array, pooled: Uint8Array, rows: number[][], scale: Scale | null}} Pooled */

/** A stretch of steps of one run and statistic, as cells × layers. */
export class Sheet {
  /**
   * @param {ArrayAnswer<CellsHeader>} answer
   * @param {string} statistic
   */
  constructor({header, values}, statistic) {
    this.statistic = statistic;
    this.header = header;
    this.values = values;
    this.edges = Float64Array.from(header.edges);
    const [cells, layers] = header.shape;
    this.cells = cells;
    this.layers = layers;
    /** @type {Course | null} the whole run over the same steps, once it has arrived. */
    this.course = null;
    /** @type {Pooled | null} */
    this._kept = null;
  }

  /**
   * Computes what `pooled` will return. It pauses between slices, so that the page can draw meanwhile.
   *
   * @param {number[][]} rows
   * @param {Scale} scale
   */
  async prepare(rows, scale) {
    const made = new Uint8Array(this.values.length);
    for (let at = 0; at < made.length; at += SLICE) {
      made.set(levels(this.values.subarray(at, at + SLICE), scale), at);
      await pause();
    }
    const pooled = new Uint8Array(rows.length * this.cells);
    const apart = Math.max(1, Math.floor(SLICE / Math.max(1, this.cells)));
    for (let row = 0; row < rows.length; row += apart) {
      pooled.set(poolRows(made, this.cells, this.layers, rows.slice(row, row + apart)), row * this.cells);
      await pause();
    }
    this._kept = {levels: made, pooled, rows, scale};
  }

  /**
   * Returns whether every step of `view` lies within the cells.
   *
   * @param {View} view
   */
  covers({from, to}) {
    return this.cells > 0 && this.edges[0] <= from && to <= this.edges[this.cells];
  }

  /**
   * Returns (rows × cells) levels. The same `rows` and `scale`, as objects, give the same array again.
   *
   * @param {number[][]} rows
   * @param {Scale | null} scale
   */
  pooled(rows, scale) {
    const kept = this._kept;
    if (kept && kept.scale === scale && kept.rows === rows) return kept.pooled;
    const made = kept && kept.scale === scale ? kept.levels : levels(this.values, scale);
    const pooled = poolRows(made, this.cells, this.layers, rows);
    this._kept = {levels: made, pooled, rows, scale};
    return pooled;
  }

  /**
   * Returns the layer among `layers` whose value at `step` is highest, of ratios furthest from 1, and that value: NaN where
   * none was measured.
   *
   * @param {number} step
   * @param {number[]} layers as indices.
   * @param {boolean} isRatio
   */
  extremeAt(step, layers, isRatio) {
    const cell = cellAt(this.edges, step);
    let [layer, extreme, rank] = [layers[0], NaN, NaN];
    for (const each of cell < 0 ? [] : layers) {
      const value = this.values[cell * this.layers + each];
      const own = isRatio ? Math.abs(Math.log(value)) : value;
      if (!(own <= rank) && own === own) [layer, extreme, rank] = [each, value, own];
    }
    return {layer, value: extreme};
  }
}

/**
 * Returns which stretch between `edges` holds `step`, or −1.
 *
 * @param {ArrayLike<number>} edges
 * @param {number} step
 */
export function cellAt(edges, step) {
  const cells = edges.length - 1;
  if (cells < 1 || step < edges[0] || step >= edges[cells]) return -1;
  let [low, high] = [0, cells];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (edges[middle] <= step) low = middle;
    else high = middle;
  }
  return low;
}
