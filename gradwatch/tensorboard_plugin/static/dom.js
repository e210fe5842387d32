// @ts-check

/** Makes elements. Text becomes text nodes and properties alone, so names from files never become markup. */

/**
 * Properties of an element, with `data` for its dataset and `style` for its styles. Names with a hyphen become attributes.
 *
 * @template {keyof HTMLElementTagNameMap} Name
 * @typedef {Partial<Omit<HTMLElementTagNameMap[Name], 'style' | 'children'>> & {
 *   style?: Partial<CSSStyleDeclaration>,
 *   data?: Record<string, string>,
 *   [attribute: `aria-${string}`]: string,
 * }} Properties
 */

/**
 * Makes an element `<name>`.
 *
 * @template {keyof HTMLElementTagNameMap} Name
 * @param {Name} name
 * @param {Properties<Name>} properties
 * @param {(Node | string | null)[]} children null is left out.
 * @returns {HTMLElementTagNameMap[Name]}
 */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(/** @type {Record<string, any>} */ (properties))) {
    if (key === 'style') Object.assign(made.style, value);
    else if (key === 'data') Object.assign(made.dataset, value);
    else if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else if (key.includes('-') || key === 'role') made.setAttribute(key, value);
    else Object.assign(made, {[key]: value});
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/**
 * Makes `canvas` as large as `width` × `height` CSS pixels and as sharp as the screen.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {number} width
 * @param {number} height
 * @returns {CanvasRenderingContext2D} its unit is a CSS pixel.
 */
export function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== across) canvas.width = across;
  if (canvas.height !== down) canvas.height = down;
  Object.assign(canvas.style, {width: `${width}px`, height: `${height}px`});
  const context = canvas.getContext('2d');
  if (!context) throw new Error('This browser gives no canvas to draw on. Close other tabs, or allow canvases.');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

/**
 * Returns the pale hatch of what is not finite, to fill with.
 *
 * @param {CanvasRenderingContext2D} context
 */
export function hatch(context) {
  const tile = document.createElement('canvas');
  const drawn = sized(tile, 6, 6);
  drawn.fillStyle = themed('hatch');
  drawn.fillRect(0, 0, 6, 6);
  drawn.fillStyle = themed('hatch-line');
  for (let at = 0; at < 6; at++) drawn.fillRect(5 - at, at, 1.5, 1);
  return context.createPattern(tile, 'repeat') ?? themed('hatch');
}

/** Returns whether the page is dark. */
export function isDark() {
  return document.documentElement.classList.contains('dark');
}

/**
 * Returns a colour of the style sheet.
 *
 * @param {string} name without the two hyphens.
 */
export function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/**
 * Returns the key of the list item that has the focus, if one in `container` does. `name` is the data attribute with the key.
 *
 * @param {HTMLElement} container
 * @param {string} name
 */
export function focusedIn(container, name) {
  const active = document.activeElement;
  return active instanceof HTMLElement && container.contains(active) ? (active.dataset[name] ?? null) : null;
}
