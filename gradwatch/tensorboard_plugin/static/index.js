// @ts-check

/** Puts the tab into its frame. TensorBoard calls `render`. */

import {App} from './app.js';
import {element} from './dom.js';
import {followAddress, followDarkMode, followReloads} from './host.js';
import {poll} from './live.js';

/** Builds the tab. TensorBoard's entry page calls this once. */
export async function render() {
  document.title = 'GradWatch';
  document.documentElement.lang = 'en';
  await Promise.all(['vendor/uPlot.css', 'style.css'].map(loadStyle));
  const app = new App();
  document.body.append(app.element);
  followDarkMode((isDark) => {
    document.documentElement.classList.toggle('dark', isDark);
    app.repaint();
  });
  window.addEventListener('resize', () => app.view && app.setView(app.view));
  new ResizeObserver(() => app.redraw()).observe(app.page.main); // as the panel at the right opens and closes
  followReloads(() => void app.reload());
  followAddress((parameters) => void app.goTo(parameters));
  await app.reload();
  poll(
    () => app.reload(),
    () => app.isLive,
  );
}

/**
 * Loads a style sheet. The promise is also kept if that fails, so the tab opens without it.
 *
 * @param {string} name
 * @returns {Promise<unknown>}
 */
function loadStyle(name) {
  return new Promise((resolve) => {
    const link = element('link', {rel: 'stylesheet', href: `./static/${name}`, onload: resolve, onerror: resolve});
    document.head.append(link);
  });
}
