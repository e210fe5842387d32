/**
 * One answer about the map (a stretch of steps at some width), as levels, pooled into the rows that are shown.
 * Pooling is kept until rows or colour scale change, so that zooming and panning only pool pixels.
 */

import {levels} from './colours.js';
import {poolRows} from './pooling.js';

const SLICE = 100_000; // values: a few milliseconds' work

const pause = () => new Promise((resolve) => setTimeout(resolve));

export class Sheet {
  /** @param {{header: object, values: Float32Array}} answer of the question `cells` about `statistic`. */
  constructor({header, values}, statistic) {
    this.statistic = statistic;
    this.header = header;
    this.values = values;
    this.edges = Float64Array.from(header.edges);
    [this.cells, this.layers] = header.shape;
  }

  /** Makes what `pooled` will be asked for, in slices between which the page can draw: no frame waits for all of it. */
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
    [this._levels, this._pooled, this._scale, this._rows] = [made, pooled, scale, rows];
  }

  /** Whether every step from `from` to `to` lies within the cells. */
  covers({from, to}) {
    return this.cells > 0 && this.edges[0] <= from && to <= this.edges[this.cells];
  }

  /** (rows × cells) levels. */
  pooled(rows, scale) {
    if (this._scale !== scale) this._levels = levels(this.values, scale);
    if (this._scale !== scale || this._rows !== rows) {
      this._pooled = poolRows(this._levels, this.cells, this.layers, rows);
      [this._scale, this._rows] = [scale, rows];
    }
    return this._pooled;
  }

  /** The cell that stands for `step`, −1 where none does. */
  cellAt(step) {
    if (!this.cells || step < this.edges[0] || step >= this.edges[this.cells]) return -1;
    let [low, high] = [0, this.cells];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.edges[middle] <= step) low = middle;
      else high = middle;
    }
    return low;
  }

  /** The highest value of `layers` at `step`; NaN where not measured. */
  valueAt(step, layers) {
    const cell = this.cellAt(step);
    let highest = NaN;
    for (const layer of cell < 0 ? [] : layers) {
      const value = this.values[cell * this.layers + layer];
      if (!(value <= highest) && value === value) highest = value;
    }
    return highest;
  }
}
