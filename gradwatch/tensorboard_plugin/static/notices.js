/** What is to be said of the pieces of work on one run: each says one thing at a time, and forgets it once it succeeds. */

import {element} from './dom.js';

export class Notices {
  constructor() {
    this.element = element('p', {className: 'error', role: 'alert', hidden: true});
    this.said = new Map(); // piece of work → {text, isFailure}
  }

  /** Whether something could not be read that may be there at the next reload. */
  get hasFailed() {
    return [...this.said.values()].some(({isFailure}) => isFailure);
  }

  /** Does `work` and says what went wrong with it, unless the question is no longer the latest by then. */
  async guard(name, work, isLatest = () => true) {
    try {
      await work();
      if (isLatest()) this.say(name, '');
    } catch (error) {
      if (isLatest()) this.say(name, error.message, true);
    }
  }

  /** One line for all that is to be said, each thing once; '' says nothing of `name` any more. */
  say(name, text, isFailure = false) {
    this.said.set(name, {text, isFailure});
    const all = [...new Set([...this.said.values()].map((each) => each.text))].filter(Boolean).join(' ');
    if (all === this.element.textContent) return; // else it would be read aloud again
    this.element.textContent = all;
    this.element.hidden = !all;
  }
}
