// Shows the figures under the pointer, and lets pointer and keys choose which steps the pictures show. The page is whole
// without it. Its hash is in the page's content security policy.
'use strict';

const FEWEST = 4; // steps that are left by a zoom
const DRAG = 4; // pixels: less is a click
const HINT = 'Drag across a picture to zoom in on steps; + − ← → do it from the keyboard.';
const tip = document.getElementById('tip');

function words(value) {
  return value === null ? 'not measured' : String(value);
}

function span(begin, end) {
  return end - begin > 1 ? `steps ${begin} to ${end - 1}` : `step ${begin}`;
}

// The lines of the tooltip over the map. A column of the picture may hold several steps: the largest shows.
function ofMap(svg, event, run, step) {
  const picture = svg.querySelector('image').getBoundingClientRect();
  const row = Math.floor(((event.clientY - picture.top) / picture.height) * run.rows.length);
  if (row < 0 || row >= run.rows.length) return null;
  const {first, end} = run.axis;
  const columns = run.norms[row].length;
  const edge = (column) => Math.ceil(first + (column * (end - first)) / columns);
  const column = Math.min(columns - 1, Math.floor(((step + 0.5 - first) / (end - first)) * columns));
  const several = edge(column + 1) - edge(column) > 1 ? 'largest ' : '';
  const lines = [run.rows[row], span(edge(column), Math.max(edge(column + 1), edge(column) + 1))];
  lines.push(`${several}gradient norm ${words(run.norms[row][column])}`);
  const outline = event.target.closest('[data-words]');
  return outline ? [...lines, outline.dataset.words] : lines;
}

// The lines of the tooltip over a curve: the figures of the next logged step.
function ofCurves(run, step) {
  const lines = [`step ${step}`];
  for (const [title, {steps, values}] of Object.entries(run.curves)) {
    const next = steps.findIndex((each) => each >= step);
    const at = steps[next] === step ? '' : ` (logged at step ${steps[next]})`;
    if (next >= 0) lines.push(`${title} ${words(values[next])}${at}`);
  }
  return lines;
}

function show(lines, event) {
  tip.hidden = !lines;
  if (!lines) return;
  tip.textContent = lines.join('\n');
  const width = tip.offsetWidth;
  const beside = event.clientX + 14 + width < innerWidth ? event.clientX + 14 : event.clientX - 14 - width;
  tip.style.left = `${Math.max(4, beside)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4)}px`;
}

// The pictures of one run, which share an axis of steps, and which steps they show.
class Pictures {
  constructor(element, run) {
    this.element = element;
    this.run = run;
    [this.status, this.reset] = element.querySelector('.zoom').children;
    this.pressed = null; // where a drag has begun: step, and pixels from the left
  }

  get length() {
    return this.end - this.begin;
  }

  // Show the steps from begin to before end, as far as the run has them.
  look(begin, end) {
    const {first, end: last, left, right} = this.run.axis;
    const length = Math.min(Math.max(end - begin, FEWEST), last - first);
    this.begin = Math.min(Math.max(Math.round(begin), first), last - length);
    this.end = this.begin + length;
    for (const plot of this.element.querySelectorAll('.plot')) {
      plot.viewBox.baseVal.x = this.drawnAt(this.begin);
      plot.viewBox.baseVal.width = this.drawnAt(this.end) - this.drawnAt(this.begin);
    }
    for (const tick of this.element.querySelectorAll('.tick')) {
      const share = (tick.x.baseVal[0].value - left) / (right - left);
      tick.textContent = Math.min(this.end - 1, Math.floor(this.begin + share * length + 1e-3));
    }
    this.placeNumbers();
    const isAll = length === last - first;
    this.reset.hidden = isAll;
    this.status.textContent = isAll ? HINT : `Steps ${this.begin} to ${this.end - 1} of ${first} to ${last - 1}.`;
  }

  lookAtAll() {
    this.look(this.run.axis.first, this.run.axis.end);
  }

  // Put the number of each outline at its left edge; those that go on from before share the edge of the picture.
  placeNumbers() {
    const {left, right} = this.run.axis;
    let edge = left;
    for (const number of this.element.querySelectorAll('.mark')) {
      const [from, to] = [number.dataset.begin, number.dataset.end].map((x) => this.shownAt(Number(x)));
      const isShown = from < right && to > left;
      number.style.visibility = isShown ? '' : 'hidden';
      number.setAttribute('x', Math.max(edge, from) + 5);
      if (isShown && from < left) edge += 14;
    }
  }

  // Return where a step begins in the whole picture, in its pixels.
  drawnAt(step) {
    const {first, end, left, right} = this.run.axis;
    return left + ((step - first) / (end - first)) * (right - left);
  }

  // Return where the zoom shows what is drawn at x.
  shownAt(x) {
    const {left, right} = this.run.axis;
    const from = this.drawnAt(this.begin);
    return left + ((x - from) / (this.drawnAt(this.end) - from)) * (right - left);
  }

  // Return the step under the pointer; null beside the axis, where nothing is being dragged.
  stepAt(svg, event) {
    const {left, right} = this.run.axis;
    const box = svg.getBoundingClientRect(); // that of a part would grow with the zoom
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const share = (x - left) / (right - left);
    if (!this.pressed && (share < 0 || share >= 1)) return null;
    return Math.min(Math.max(Math.floor(this.begin + share * this.length), this.begin), this.end - 1);
  }

  // Mark steps in every picture.
  mark(begin, end) {
    for (const rect of this.element.querySelectorAll('.chosen')) {
      rect.setAttribute('x', this.drawnAt(begin));
      rect.setAttribute('width', this.drawnAt(end) - this.drawnAt(begin));
    }
  }

  press(svg, event) {
    const step = event.button === 0 ? this.stepAt(svg, event) : null;
    if (step === null) return;
    this.pressed = {step, x: event.clientX};
    svg.setPointerCapture(event.pointerId);
  }

  move(svg, event) {
    const step = this.stepAt(svg, event);
    if (step === null) {
      this.leave();
      return;
    }
    const from = this.pressed ? this.pressed.step : step;
    this.mark(Math.min(step, from), Math.max(step, from) + 1);
    show(svg.classList.contains('map') ? ofMap(svg, event, this.run, step) : ofCurves(this.run, step), event);
  }

  release(svg, event) {
    if (this.pressed && Math.abs(event.clientX - this.pressed.x) > DRAG) {
      const [from, step] = [this.pressed.step, this.stepAt(svg, event)];
      this.look(Math.min(step, from), Math.max(step, from) + 1);
    }
    this.pressed = null;
    this.leave();
  }

  leave() {
    this.mark(this.begin, this.begin);
    show(null);
  }

  pressKey(event) {
    const middle = (this.begin + this.end) / 2;
    const [half, quarter] = [Math.ceil(this.length / 2), Math.ceil(this.length / 4)];
    const moves = {
      '+': () => this.look(middle - half / 2, middle + half / 2),
      '-': () => this.look(middle - this.length, middle + this.length),
      ArrowLeft: () => this.look(this.begin - quarter, this.end - quarter),
      ArrowRight: () => this.look(this.begin + quarter, this.end + quarter),
      Escape: () => this.lookAtAll(),
    };
    const move = moves[{'=': '+', '−': '-'}[event.key] ?? event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    move();
    this.leave();
    event.preventDefault();
  }

  attach() {
    for (const svg of this.element.querySelectorAll('svg.map, svg.chart')) {
      svg.addEventListener('pointerdown', (event) => this.press(svg, event));
      svg.addEventListener('pointermove', (event) => this.move(svg, event));
      svg.addEventListener('pointerup', (event) => this.release(svg, event));
      svg.addEventListener('pointercancel', () => (this.pressed = null));
      svg.addEventListener('pointerleave', () => this.leave());
      svg.addEventListener('dblclick', () => this.lookAtAll());
    }
    for (const title of this.element.querySelectorAll('.plot title')) {
      title.parentNode.dataset.words = title.textContent; // a line of our tooltip, in place of a second one
      title.remove();
    }
    this.element.addEventListener('keydown', (event) => this.pressKey(event));
    this.reset.addEventListener('click', () => {
      this.lookAtAll();
      this.element.focus();
    });
    this.element.classList.add('zoomable');
    this.element.tabIndex = 0;
    this.element.setAttribute('role', 'group');
    this.element.setAttribute('aria-label', 'Pictures along time');
    this.reset.parentNode.hidden = false;
    this.lookAtAll();
  }
}

const runs = JSON.parse(document.getElementById('figures').textContent);
for (const section of document.querySelectorAll('section[data-run]')) {
  const run = runs[Number(section.dataset.run)];
  if (run.axis) new Pictures(section.querySelector('.pictures'), run).attach();
}
