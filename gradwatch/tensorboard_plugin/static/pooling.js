// @ts-check

/**
 * Pools the levels of (cells × layers) into rows, and rows into pixels. It always takes the highest level, so that a
 * single spike never disappears. colours.js defines the order of levels: not measured, low to high, not finite.
 */

/**
 * Returns (rows × cells): for each row the highest level of its layers.
 *
 * @param {Uint8Array} levels (cells × layers)
 * @param {number} cells
 * @param {number} layers
 * @param {number[][]} rows the layers of each row, as indices.
 */
export function poolRows(levels, cells, layers, rows) {
  const pooled = new Uint8Array(rows.length * cells);
  for (let row = 0; row < rows.length; row++) {
    const at = row * cells;
    for (const layer of rows[row]) {
      for (let cell = 0, from = layer; cell < cells; cell++, from += layers) {
        if (levels[from] > pooled[at + cell]) pooled[at + cell] = levels[from];
      }
    }
  }
  return pooled;
}

/**
 * Returns which of the stretches between `edges` each pixel touches, as pairs: the first one, and one past the last. Pixels
 * beyond the edges get an empty pair. A stretch narrower than a pixel is touched by at least one pixel.
 *
 * @param {ArrayLike<number>} edges
 * @param {number} from where the first pixel begins.
 * @param {number} to where the last pixel ends.
 * @param {number} pixels
 */
export function touched(edges, from, to, pixels) {
  const bounds = new Int32Array(2 * pixels);
  const count = edges.length - 1;
  let first = 0;
  for (let pixel = 0; pixel < pixels; pixel++) {
    const left = from + ((to - from) * pixel) / pixels;
    const right = from + ((to - from) * (pixel + 1)) / pixels;
    while (first < count && edges[first + 1] <= left) first++;
    let last = first;
    while (last < count && edges[last] < right) last++;
    bounds[2 * pixel] = first;
    bounds[2 * pixel + 1] = Math.max(last, first);
  }
  return bounds;
}

/**
 * Writes the highest level of each pixel into `image` (height × width). Pixels beyond the cells keep what they have.
 *
 * @param {Uint8Array} pooled (rows × cells)
 * @param {number} cells
 * @param {Int32Array} columns the cells of each column of pixels, as `touched` returns them.
 * @param {Int32Array} lines the rows of each line of pixels, as `touched` returns them.
 * @param {number} width
 * @param {number} height
 * @param {Uint8Array} image
 */
export function poolPixels(pooled, cells, columns, lines, width, height, image) {
  const line = new Uint8Array(cells);
  for (let y = 0; y < height; y++) {
    const [top, bottom] = [lines[2 * y], lines[2 * y + 1]];
    if (bottom <= top) continue;
    line.set(pooled.subarray(top * cells, (top + 1) * cells));
    for (let row = top + 1; row < bottom; row++) {
      const at = row * cells;
      for (let cell = 0; cell < cells; cell++) if (pooled[at + cell] > line[cell]) line[cell] = pooled[at + cell];
    }
    for (let x = 0; x < width; x++) {
      const [start, end] = [columns[2 * x], columns[2 * x + 1]];
      if (end <= start) continue;
      let highest = line[start];
      for (let cell = start + 1; cell < end; cell++) if (line[cell] > highest) highest = line[cell];
      image[y * width + x] = highest;
    }
  }
}

/**
 * Returns the row boundaries 0, 1, … that `touched` takes.
 *
 * @param {number} count
 */
export function rowEdges(count) {
  return Float64Array.from({length: count + 1}, (_, row) => row);
}
