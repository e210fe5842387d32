// @ts-check

/** Shows what has to be said about one run. Each piece of work has one notice, which goes when that work succeeds. */

import {messageOf} from './api.js';
import {element} from './dom.js';

/** The notices of one run, as one line. */
export class Notices {
  constructor() {
    this.element = element('p', {className: 'error', role: 'alert', hidden: true});
    /** @type {Map<string, {text: string, isFailure: boolean}>} by piece of work */
    this.said = new Map();
  }

  /** Whether something could not be read. It may be there at the next reload. */
  get hasFailed() {
    return [...this.said.values()].some(({isFailure}) => isFailure);
  }

  /**
   * Does `work`, and says what went wrong with it. Nothing is said if another question has replaced this one by then.
   *
   * @param {string} name
   * @param {() => Promise<void>} work
   * @param {() => boolean} isLatest
   */
  async guard(name, work, isLatest = () => true) {
    try {
      await work();
      if (isLatest()) this.say(name, '');
    } catch (error) {
      if (isLatest()) this.say(name, messageOf(error), true);
    }
  }

  /**
   * Sets the notice of one piece of work; '' removes it. The line shows every text once.
   *
   * @param {string} name
   * @param {string} text
   * @param {boolean} isFailure
   */
  say(name, text, isFailure = false) {
    this.said.set(name, {text, isFailure});
    const all = [...new Set([...this.said.values()].map((each) => each.text))].filter(Boolean).join(' ');
    if (all === this.element.textContent) return; // a screen reader would read it aloud again
    this.element.textContent = all;
    this.element.hidden = !all;
  }
}
