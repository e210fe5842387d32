/**
 * Mouse, touch and keys over the map → zoom, pan, pick, hover. Knows nothing of what is drawn: places are shares of the
 * element's width and height.
 */

const DRAG = 4; // pixels that a click may move
const ZOOM = 1.25;

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

/** @param {object} to {zoom, zoomRows, pan, pick, hover, leave, reset, step, row}. */
export function follow(target, to) {
  let drag = null;
  const at = (event) => {
    const box = target.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, box];
  };
  target.addEventListener(
    'wheel',
    (event) => {
      event.preventDefault();
      const factor = ZOOM ** Math.sign(event.deltaY || event.deltaX); // Shift turns one into the other
      if (event.shiftKey) to.zoomRows(factor, at(event)[1]);
      else to.zoom(factor, at(event)[0]);
    },
    {passive: false},
  );
  target.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    target.setPointerCapture(event.pointerId);
    drag = {x: event.clientX, y: event.clientY, moved: false};
  });
  target.addEventListener('pointermove', (event) => {
    const [x, y, box] = at(event);
    if (!drag) return to.hover(x, y);
    const [across, down] = [drag.x - event.clientX, drag.y - event.clientY];
    if (!drag.moved && Math.hypot(across, down) < DRAG) return undefined;
    drag = {x: event.clientX, y: event.clientY, moved: true};
    return to.pan(across / box.width, down / box.height);
  });
  target.addEventListener('pointerup', (event) => {
    const [x, y] = at(event);
    if (drag && !drag.moved) to.pick(x, y);
    drag = null;
  });
  target.addEventListener('pointercancel', () => (drag = null));
  target.addEventListener('pointerleave', () => to.leave());
  target.addEventListener('dblclick', () => to.reset());
  target.addEventListener('keydown', (event) => {
    const action = KEYS[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action(to, event);
  });
}
