// @ts-check

/** Chooses which boxes beside the map get a name, and where the names lie. It does not know the page. */

/** @import {Box} from './tree.js' */
/** @import {View} from './view.js' */

/**
 * Where the name of a box lies, in pixels.
 *
 * @typedef {object} Place
 * @property {Box} box
 * @property {number} top
 * @property {number} bottom
 * @property {boolean} isLow whether the box itself is too low for a name.
 * @property {boolean} isSick
 * @property {string} name what the modules around it that have names do not say.
 * @property {number} level how many of the modules around it have names.
 * @property {boolean} hasInner whether something in it has a name.
 */

const LEAST_HEIGHT = 11; // pixels that a name needs in its box
const NAME_HEIGHT = 15; // of the name of a box that is lower than that

/**
 * Returns the boxes that get a name, from top to bottom. Of those that are too low for one, the sick ones come first, then as
 * many as have room, as an axis names some of its ticks.
 *
 * @param {Box[]} boxes a module before what is in it.
 * @param {View} rowView rows in view.
 * @param {number} height
 * @param {(box: Box) => boolean} isSick
 * @returns {Place[]}
 */
export function placesOfNames(boxes, rowView, height, isSick) {
  const all = boxesInView(boxes, rowView, height, isSick);
  const shown = all.filter(({isLow}) => !isLow);
  const low = all.filter(({isLow}) => isLow);
  for (const place of low.filter((each) => each.isSick)) {
    if (shown.every((other) => !other.isLow || isApart(place, other))) shown.push(place);
  }
  for (const place of low.filter((each) => !each.isSick && each.level === each.box.level)) {
    if (shown.every((other) => isApart(place, other))) shown.push(place);
  }
  shown.sort((one, other) => one.box.top - other.box.top || one.box.level - other.box.level);
  return shown.map((place) => ({...place, hasInner: shown.some(({box}) => isWithin(box, place.box))}));
}

/**
 * @param {Box[]} boxes
 * @param {View} rowView
 * @param {number} height
 * @param {(box: Box) => boolean} isSick
 * @returns {Place[]}
 */
function boxesInView(boxes, rowView, height, isSick) {
  const perRow = height / (rowView.to - rowView.from);
  const isLow = (/** @type {Box} */ box) => (box.bottom - box.top) * perRow < LEAST_HEIGHT;
  /** @type {Box[]} the modules around the box at hand, from the outermost. */
  let outer = [];
  const places = boxes.map((box) => {
    outer = outer.slice(0, box.level);
    const named = outer.filter((each) => !isLow(each));
    outer.push(box);
    const top = Math.max(0, (box.top - rowView.from) * perRow);
    const bottom = Math.min(height, (box.bottom - rowView.from) * perRow);
    const place = isLow(box) ? around(top, bottom, height) : {top, bottom};
    return {box, ...place, isLow: isLow(box), name: nameOf(box, named), level: named.length};
  });
  return places
    .filter(({box}) => box.bottom > rowView.from && box.top < rowView.to)
    .map((place) => ({...place, isSick: isSick(place.box), hasInner: false}));
}

/**
 * @param {Box} box
 * @param {Box[]} named the modules around it that have names, from the outermost.
 */
function nameOf({node, level}, named) {
  if (named.length === level) return node.name;
  const said = named.at(-1)?.node.path;
  return said === undefined ? node.path : node.path.slice(said.length + 1);
}

/**
 * Returns a place for a name around a box that is lower than the name.
 *
 * @param {number} top
 * @param {number} bottom
 * @param {number} height of all boxes.
 */
function around(top, bottom, height) {
  const from = Math.min(Math.max(0, (top + bottom - NAME_HEIGHT) / 2), height - NAME_HEIGHT);
  return {top: from, bottom: from + NAME_HEIGHT};
}

/**
 * Returns whether a name does not cover another one, nor reach beyond the module that it is in.
 *
 * @param {Place} place
 * @param {Place} other
 */
function isApart({box, top, bottom}, other) {
  if (isWithin(box, other.box)) return other.top <= top && bottom <= other.bottom;
  return other.bottom <= top || other.top >= bottom;
}

/**
 * @param {Box} inner
 * @param {Box} outer
 */
function isWithin(inner, outer) {
  return outer.level < inner.level && outer.top <= inner.top && outer.bottom >= inner.bottom;
}
