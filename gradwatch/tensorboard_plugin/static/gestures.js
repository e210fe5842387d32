// @ts-check

/**
 * Turns mouse, touch and keys over the map into actions. It does not know what is drawn: it gives places as shares of the
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
 * @property {(x: number, y: number) => void} hover
 * @property {() => void} leave the mouse has left the map.
 * @property {() => void} reset
 * @property {(by: number) => void} step
 * @property {(by: number) => void} row
 */

const DRAG = 4; // pixels that a click may move
const ZOOM = 1.25;

/** @type {Record<string, (to: Actions, event: KeyboardEvent) => void>} */
const KEYS = {
  '+': (to) => to.zoom(1 / ZOOM / ZOOM, 0.5),
  '=': (to) => to.zoom(1 / ZOOM / ZOOM, 0.5),
  '-': (to) => to.zoom(ZOOM * ZOOM, 0.5),
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
  target.addEventListener('keydown', (event) => {
    const action = KEYS[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action(to, event);
  });
}

/**
 * @param {HTMLElement} target
 * @param {Actions} to
 */
function followWheel(target, to) {
  const turned = (/** @type {WheelEvent} */ event) => {
    event.preventDefault();
    const factor = ZOOM ** Math.sign(event.deltaY || event.deltaX); // with Shift, browsers report deltaX
    const {x, y} = placeOf(event, target);
    if (event.shiftKey) to.zoomRows(factor, y);
    else to.zoom(factor, x);
  };
  target.addEventListener('wheel', turned, {passive: false});
}

/**
 * @param {HTMLElement} target
 * @param {Actions} to
 */
function followPointer(target, to) {
  /** @type {{x: number, y: number, moved: boolean} | null} */
  let drag = null;
  target.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    target.setPointerCapture(event.pointerId);
    drag = {x: event.clientX, y: event.clientY, moved: false};
  });
  target.addEventListener('pointermove', (event) => {
    const {x, y, box} = placeOf(event, target);
    if (!drag) {
      to.hover(x, y);
      return;
    }
    const [across, down] = [drag.x - event.clientX, drag.y - event.clientY];
    if (!drag.moved && Math.hypot(across, down) < DRAG) return;
    drag = {x: event.clientX, y: event.clientY, moved: true};
    to.pan(across / box.width, down / box.height);
  });
  target.addEventListener('pointerup', (event) => {
    const {x, y} = placeOf(event, target);
    if (drag && !drag.moved) to.pick(x, y);
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
