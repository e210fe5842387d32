/** The boxes beside the map: modules, nested from left to right, and layers, as far as there is room for their names. */

import {element} from './dom.js';

const LEAST_HEIGHT = 11; // pixels that a name needs
const MODULE_WIDTH = 52;
const NAME_WIDTH = 96;

/** Pixels that the names of `boxes` would like to have side by side. */
export function wantedWidth(boxes) {
  return boxes.reduce((most, {level}) => Math.max(most, level), 0) * MODULE_WIDTH + NAME_WIDTH;
}

/**
 * Fills `container` with a tree of buttons.
 *
 * @param {object[]} boxes of tree.js.
 * @param {{from: number, to: number}} rowView rows in view.
 * @param {object} on {toggle(path), pick(layer)}.
 */
export function showLabels(container, boxes, rowView, height, selected, on) {
  const focused = container.contains(document.activeElement) ? document.activeElement.dataset.path : null;
  const perRow = height / (rowView.to - rowView.from);
  const shown = boxes.filter(({top, bottom}) => bottom > rowView.from && top < rowView.to);
  const buttons = shown
    .filter((box) => (box.bottom - box.top) * perRow >= LEAST_HEIGHT)
    .map((box) => {
      const top = Math.max(0, (box.top - rowView.from) * perRow);
      const bottom = Math.min(height, (box.bottom - rowView.from) * perRow);
      return button(box, top, bottom, perRow, selected, on);
    });
  container.replaceChildren(...buttons);
  const again = buttons.find((each) => each.dataset.path === focused);
  (again ?? buttons[0])?.setAttribute('tabindex', '0');
  again?.focus();
}

function button({node, level, isGroup, isCollapsed}, top, bottom, perRow, selected, on) {
  const hasInner = isGroup && !isCollapsed && innerShows(node, perRow);
  const isSelected = !isGroup && node.layers[0] === selected;
  const count = node.layers.length;
  const made = element(
    'button',
    {
      role: 'treeitem',
      tabIndex: -1,
      className: `label${isGroup ? ' module' : ''}${isCollapsed ? ' collapsed' : ''}`,
      title: isGroup ? `${node.path}: ${count} layers. Click to ${isCollapsed ? 'open' : 'close'}.` : node.path,
      'aria-level': String(level + 1),
      'aria-label': isGroup ? `${node.path}, ${count} layers` : node.path,
      'aria-selected': String(isSelected),
      data: {path: `${node.path}${isGroup ? '.' : ''}`},
      style: {
        top: `${top}px`,
        height: `${bottom - top}px`,
        left: `${level * MODULE_WIDTH}px`,
        width: hasInner ? `${MODULE_WIDTH}px` : `calc(100% - ${level * MODULE_WIDTH}px)`,
      },
      onclick: () => (isGroup ? on.toggle(node.path) : on.pick(node.layers[0])),
      onkeydown: (event) => moveFocus(event, isGroup, isCollapsed),
    },
    element('span', {}, isCollapsed ? `${node.name} (${count})` : node.name),
  );
  if (isGroup) made.setAttribute('aria-expanded', String(!isCollapsed));
  return made;
}

/** Whether anything inside `node` is high enough for a name of its own. */
function innerShows(node, perRow) {
  return (
    perRow >= LEAST_HEIGHT ||
    node.children.some(({children, layers}) => children.length && layers.length * perRow >= LEAST_HEIGHT)
  );
}

/** As trees do it: up and down to the neighbours, left closes a module, right opens it. */
function moveFocus(event, isGroup, isCollapsed) {
  if (isGroup && event.key === (isCollapsed ? 'ArrowRight' : 'ArrowLeft')) {
    event.preventDefault();
    event.currentTarget.click();
    return;
  }
  const by = {ArrowDown: 'nextElementSibling', ArrowUp: 'previousElementSibling'}[event.key];
  const next = by && event.currentTarget[by];
  if (!next) return;
  event.preventDefault();
  event.currentTarget.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}
