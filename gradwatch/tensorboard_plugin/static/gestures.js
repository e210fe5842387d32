// @ts-check

/**
 * Turns mouse, touch and keys over a map into actions. It does not know what is drawn: it gives places as shares of the
 * element's width and height.
 */

/**
 * What gestures ask for.
 *
 * @typedef {object} Actions
 * @property {(factor: number, x: number) => void} zoom steps, around the place `x`.
 * @property {(factor: number, y: number) => void} zoomRows
 * @property {(x: number, y: number) => void} pan
 * @property {(x: number, y: number) => void} pick
 * @property {(from: number, to: number) => void} brush shows which steps would be selected.
 * @property {(from: number, to: number) => void} select steps to show alone.
 * @property {(x: number, y: number, event: MouseEvent) => void} hover
 * @property {() => void} leave the mouse has left the map.
 * @property {() => void} reset
 * @property {(by: number) => void} step
 * @property {(by: number) => void} row
 */

const DRAG = 4; // pixels that a click may move
const ZOOM = 1.25;
const [PER_PIXEL, PER_PINCHED_PIXEL] = [0.002, 0.01]; // a turn of a mouse's wheel is 100 pixels, a pinch few
const MOST_PIXELS = 240; // of one event
const PIXELS = [1, 16, 400]; // of a delta in pixels, lines, pages

/** @type {Record<string, (to: Actions, event: KeyboardEvent) => void>} */
const KEYS = {
  '+': (to) => to.zoom(1 / ZOOM / ZOOM, 0.5),
  '=': (to) => to.zoom(1 / ZOOM / ZOOM, 0.5),
  '-': (to) => to.zoom(ZOOM * ZOOM, 0.5),
  w: (to) => to.zoom(1 / ZOOM / ZOOM, 0.5),
  s: (to) => to.zoom(ZOOM * ZOOM, 0.5),
  a: (to) => to.pan(-0.25, 0),
  d: (to) => to.pan(0.25, 0),
  0: (to) => to.reset(),
  ArrowLeft: (to, event) => (event.shiftKey ? to.pan(-0.25, 0) : to.step(-1)),
  ArrowRight: (to, event) => (event.shiftKey ? to.pan(0.25, 0) : to.step(1)),
  ArrowUp: (to, event) => (event.shiftKey ? to.pan(0, -0.25) : to.row(-1)),
  ArrowDown: (to, event) => (event.shiftKey ? to.pan(0, 0.25) : to.row(1)),
  '[': (to) => to.zoomRows(ZOOM, 0.5),
  ']': (to) => to.zoomRows(1 / ZOOM, 0.5),
};

/**
 * Follows what the user does over `target`.
 *
 * @param {HTMLElement} target
 * @param {Actions} to
 */
export function follow(target, to) {
  followWheel(target, to);
  followPointer(target, to);
  target.addEventListener('dblclick', () => to.reset());
}

/**
 * Does what a key asks for, and returns whether it asks for anything.
 *
 * @param {KeyboardEvent} event
 * @param {Actions} to
 */
export function press(event, to) {
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey) return false;
  event.preventDefault();
  action(to, event);
  return true;
}

/**
 * Returns how much a turn of the wheel zooms: in proportion to its delta, so that 30 small turns are one large one.
 *
 * @param {Pick<WheelEvent, 'deltaX' | 'deltaY' | 'deltaMode' | 'ctrlKey'>} event browsers report a pinch with `ctrlKey`.
 */
export function zoomOf({deltaX, deltaY, deltaMode, ctrlKey}) {
  const turned = (deltaY || deltaX) * (PIXELS[deltaMode] ?? 1); // with Shift, browsers report deltaX
  const pixels = Math.min(Math.max(turned, -MOST_PIXELS), MOST_PIXELS);
  return Math.exp(pixels * (ctrlKey ? PER_PINCHED_PIXEL : PER_PIXEL));
}

/**
 * @param {HTMLElement} target
 * @param {Actions} to
 */
function followWheel(target, to) {
  const turned = (/** @type {WheelEvent} */ event) => {
    event.preventDefault();
    const {x, y, box} = placeOf(event, target);
    const isSwipe = Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (event.shiftKey) to.zoomRows(zoomOf(event), y);
    else if (isSwipe) to.pan((event.deltaX * (PIXELS[event.deltaMode] ?? 1)) / box.width, 0);
    else to.zoom(zoomOf(event), x);
    to.hover(x, y, event); // another step or row may lie under the mouse now
  };
  target.addEventListener('wheel', turned, {passive: false});
}

/** @typedef {{x: number, y: number, from: number, moved: boolean, pans: boolean}} Drag in pixels, `from` as a share. */

/**
 * A drag selects steps; a drag with Shift, or by a finger, moves the map.
 *
 * @param {HTMLElement} target
 * @param {Actions} to
 */
function followPointer(target, to) {
  /** @type {Drag | null} */
  let drag = null;
  target.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    target.setPointerCapture(event.pointerId);
    const pans = event.shiftKey || event.pointerType === 'touch';
    drag = {x: event.clientX, y: event.clientY, from: placeOf(event, target).x, moved: false, pans};
  });
  target.addEventListener('pointermove', (event) => {
    const {x, y, box} = placeOf(event, target);
    if (!drag) {
      to.hover(x, y, event);
      return;
    }
    const [across, down] = [drag.x - event.clientX, drag.y - event.clientY];
    if (!drag.moved && Math.hypot(across, down) < DRAG) return;
    drag.moved = true;
    if (!drag.pans) {
      to.brush(drag.from, x);
      return;
    }
    drag = {...drag, x: event.clientX, y: event.clientY};
    to.pan(across / box.width, down / box.height);
  });
  target.addEventListener('pointerup', (event) => {
    const {x, y} = placeOf(event, target);
    if (drag && !drag.moved) to.pick(x, y);
    else if (drag && !drag.pans) to.select(drag.from, x);
    drag = null;
  });
  target.addEventListener('pointercancel', () => (drag = null));
  target.addEventListener('pointerleave', () => to.leave());
}

/**
 * @param {MouseEvent} event
 * @param {HTMLElement} target
 */
function placeOf(event, target) {
  const box = target.getBoundingClientRect();
  return {x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height, box};
}
