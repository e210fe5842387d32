/**
 * One answer about the map (a stretch of steps at some width), as levels, pooled into the rows that are shown.
 * Pooling is kept until rows or colour scale change, so that zooming and panning only pool pixels.
 */

import {levels} from './colours.js';
import {poolRows} from './pooling.js';

export class Sheet {
  /** @param {{header: object, values: Float32Array}} answer of the question `cells`. */
  constructor({header, values}) {
    this.header = header;
    this.values = values;
    this.edges = Float64Array.from(header.edges);
    [this.cells, this.layers] = header.shape;
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
