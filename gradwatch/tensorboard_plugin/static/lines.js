// @ts-check

/** Draws vertical lines over strips, map and axis of a run: the chosen step, that under the mouse, a stretch of steps. */

import {element} from './dom.js';
import {toPixel} from './painter.js';

/** @import {View} from './view.js' */

/** The lines of one run. */
export class StepLines {
  constructor() {
    this.place = element('div', {className: 'place', hidden: true});
    this.cursor = element('div', {className: 'cursor', hidden: true});
    this.brush = element('div', {className: 'brush', hidden: true});
  }

  /**
   * Puts a line at a step, or hides it.
   *
   * @param {'place' | 'cursor'} name
   * @param {number | null} step
   * @param {View | null} view
   * @param {number} width of the map.
   */
  mark(name, step, view, width) {
    const line = this[name];
    line.hidden = step === null || !view || step < view.from || step >= view.to;
    if (step !== null && view && !line.hidden) line.style.left = `${toPixel(step + 0.5, view, width)}px`;
  }

  /**
   * Shows which steps would be selected.
   *
   * @param {View | null} steps
   * @param {View | null} view
   * @param {number} width of the map.
   */
  select(steps, view, width) {
    this.brush.hidden = !steps || !view;
    if (!steps || !view) return;
    const [left, right] = [steps.from, steps.to].map((step) => toPixel(step, view, width));
    Object.assign(this.brush.style, {left: `${left}px`, width: `${right - left}px`});
  }
}
