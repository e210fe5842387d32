// @ts-check

/** Shows a small table beside the mouse. Screen readers get the same from the line of status of each map. */

import {element} from './dom.js';

/** @typedef {[name: string, value: string][]} Lines */

const APART = 14; // pixels from the mouse

/** @type {HTMLElement | null} the table, once something was said. */
let box = null;

/**
 * Shows a title and lines at a place of the window.
 *
 * @param {number} x
 * @param {number} y
 * @param {string} title
 * @param {Lines} lines
 */
export function showTooltip(x, y, title, lines) {
  box ??= document.body.appendChild(element('div', {className: 'tooltip', 'aria-hidden': 'true'}));
  const rows = lines.map(([name, value]) => [element('dt', {}, name), element('dd', {}, value)]);
  box.replaceChildren(element('strong', {}, title), element('dl', {}, ...rows.flat()));
  box.hidden = false;
  const {width, height} = box.getBoundingClientRect();
  const {clientWidth, clientHeight} = document.documentElement;
  const left = x + APART + width > clientWidth ? x - APART - width : x + APART;
  const top = y + APART + height > clientHeight ? y - APART - height : y + APART;
  Object.assign(box.style, {left: `${Math.max(0, left)}px`, top: `${Math.max(0, top)}px`});
}

/** Hides it. */
export function hideTooltip() {
  if (box) box.hidden = true;
}
