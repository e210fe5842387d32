// @ts-check

/** Draws the boxes beside the map: modules nested from left to right, and layers. */

import {counted} from './axis.js';
import {element, focusedIn} from './dom.js';
import {placesOfNames} from './placement.js';

/** @import {Place} from './placement.js' */
/** @import {Box} from './tree.js' */
/** @import {View} from './view.js' */

/** @typedef {{toggle: (path: string) => void, pick: (layer: number) => void}} Choices what a click on a box does. */

/** @typedef {{selected: number | undefined, sick: Set<number>}} Shown the chosen layer, and those that findings name. */

const MODULE_WIDTH = 52;
const [CHARACTER, AROUND] = [6.2, 16]; // pixels of a name

/**
 * Returns how many pixels the names of `boxes` need side by side.
 *
 * @param {Box[]} boxes
 */
export function wantedWidth(boxes) {
  const rows = boxes.filter(({isGroup, isCollapsed}) => !isGroup || isCollapsed);
  const widths = rows.map(({node, level}) => level * MODULE_WIDTH + node.name.length * CHARACTER + AROUND);
  return Math.round(Math.max(0, ...widths));
}

/**
 * Fills `container` with a tree of buttons.
 *
 * @param {HTMLElement} container
 * @param {Box[]} boxes
 * @param {View} rowView rows in view.
 * @param {number} height
 * @param {Shown} layers
 * @param {Choices} on
 */
export function showLabels(container, boxes, rowView, height, layers, on) {
  const focused = focusedIn(container, 'path');
  const places = placesOfNames(boxes, rowView, height, (box) => isSick(box, layers));
  const buttons = places.map((place) => button(place, layers, on));
  container.replaceChildren(...buttons);
  const again = buttons.find((each) => each.dataset.path === focused);
  (again ?? buttons[0])?.setAttribute('tabindex', '0');
  again?.focus();
}

/**
 * Returns whether a row holds a layer that a finding names. An open module leaves that to its rows.
 *
 * @param {Box} box
 * @param {Shown} layers
 */
function isSick({node, isGroup, isCollapsed}, {sick}) {
  return (!isGroup || isCollapsed) && node.layers.some((layer) => sick.has(layer));
}

/**
 * @param {Place} place
 * @param {Shown} layers
 * @param {Choices} on
 */
function button({box, top, bottom, name, level, hasInner}, layers, on) {
  const {node, isGroup, isCollapsed} = box;
  const left = level * MODULE_WIDTH;
  const made = element(
    'button',
    {
      role: 'treeitem',
      tabIndex: -1,
      className: classesOf(box, layers),
      'aria-level': String(box.level + 1),
      'aria-selected': String(!isGroup && node.layers[0] === layers.selected),
      ...namesOf(box),
      style: {
        top: `${top}px`,
        height: `${bottom - top}px`,
        left: `${left}px`,
        width: hasInner ? `${MODULE_WIDTH}px` : `calc(100% - ${left}px)`,
      },
      onclick: () => (isGroup ? on.toggle(node.path) : on.pick(node.layers[0])),
      onkeydown: (event) => moveFocus(event, made, isGroup, isCollapsed),
    },
    element('span', {}, isCollapsed ? `▸ ${name}` : name),
  );
  if (isGroup) made.setAttribute('aria-expanded', String(!isCollapsed));
  return made;
}

/**
 * @param {Box} box
 * @param {Shown} layers
 */
function classesOf(box, layers) {
  const {isGroup, isCollapsed} = box;
  return ['label', isGroup && 'module', isCollapsed && 'collapsed', isSick(box, layers) && 'sick']
    .filter(Boolean)
    .join(' ');
}

/**
 * Returns the tooltip of a box, its name for screen readers, and its key.
 *
 * @param {Box} box
 */
function namesOf({node: {path, layers}, isGroup, isCollapsed}) {
  if (!isGroup) return {title: path, 'aria-label': path, data: {path}};
  const count = counted(layers.length, 'layer');
  return {
    title: `${path}: ${count}. Click to ${isCollapsed ? 'open' : 'close'}.`,
    'aria-label': `${path}, ${count}`,
    data: {path: `${path}.`}, // a layer can have the name of a module
  };
}

/**
 * Moves the focus as trees do: up and down go to the neighbours, left closes a module, right opens it.
 *
 * @param {KeyboardEvent} event
 * @param {HTMLElement} box
 * @param {boolean} isGroup
 * @param {boolean} isCollapsed
 */
function moveFocus(event, box, isGroup, isCollapsed) {
  if (isGroup && event.key === (isCollapsed ? 'ArrowRight' : 'ArrowLeft')) {
    event.preventDefault();
    box.click();
    return;
  }
  const next = neighbour(box, event.key);
  if (!(next instanceof HTMLElement)) return;
  event.preventDefault();
  box.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/**
 * @param {HTMLElement} box
 * @param {string} key
 */
function neighbour(box, key) {
  if (key === 'ArrowDown') return box.nextElementSibling;
  return key === 'ArrowUp' ? box.previousElementSibling : null;
}
