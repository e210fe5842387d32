/**
 * Levels of (cells × layers) → levels of rows, then of pixels, always the highest: a single spike never disappears.
 * Levels are ordered as colours.js makes them: not measured, low to high, not finite.
 */

/** (rows × cells), each row the highest of its layers. `rows` is an array of arrays of layers' indices. */
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
 * For each of `pixels` over `from` to `to`, the first and one past the last of the stretches between `edges` that it
 * touches: [start, end) pairs, empty beyond the edges. A stretch narrower than a pixel is touched by one at least.
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

/** Writes the highest level under each pixel into `image` (height × width); pixels beyond the cells stay as they are. */
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

/** Row boundaries 0, 1, … as `touched` wants them. */
export function rowEdges(count) {
  return Float64Array.from({length: count + 1}, (_, row) => row);
}
