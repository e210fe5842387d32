// @ts-check

/**
 * Connects the tab with the TensorBoard around it: its reloads, its address bar, its dark mode.
 *
 * The tab is a frame of the same origin. TensorBoard reads `p.<plugin>.<name>` from its address, but offers no way to write
 * such parts. This file writes them, and leaves TensorBoard's own parts as they are.
 */

const PREFIX = 'p.gradwatch.';

/**
 * Calls `reloaded` whenever TensorBoard has read its files again.
 *
 * @param {() => void} reloaded
 */
export function followReloads(reloaded) {
  const channel = new MessageChannel();
  channel.port1.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.isReply) return;
    channel.port1.postMessage(
      JSON.stringify({type: message.type, id: message.id, payload: null, error: null, isReply: true}),
    );
    if (message.type === 'experimental.DataReloaded') reloaded();
  };
  window.parent.postMessage('experimental.bootstrap', '*', [channel.port2]);
}

/**
 * Returns the tab's own parts of an address' hash, as {name: text}.
 *
 * @param {string} hash
 */
export function parametersIn(hash) {
  /** @type {Record<string, string>} */
  const parameters = {};
  for (const part of hash.replace(/^#/, '').split('&')) {
    const [name, value = ''] = part.split('=');
    if (!name.startsWith(PREFIX)) continue;
    try {
      parameters[name.slice(PREFIX.length)] = decodeURIComponent(value);
    } catch {
      // The percent sign encodes nothing: somebody typed it.
    }
  }
  return parameters;
}

/**
 * Returns `hash` with the tab's own parts replaced by `parameters`.
 *
 * @param {string} hash
 * @param {Record<string, string>} parameters
 */
export function hashWith(hash, parameters) {
  const others = hash
    .replace(/^#/, '')
    .split('&')
    .filter((part) => part && !part.startsWith(PREFIX));
  const own = Object.entries(parameters).map(([name, text]) => `${PREFIX}${name}=${encodeURIComponent(text)}`);
  return `#${[...others, ...own].join('&')}`;
}

/** @param {string} hash */
function isOurs(hash) {
  return /^#gradwatch(&|$)/.test(hash);
}

/** Returns the tab's own parts of the address bar. */
export function readAddress() {
  return parametersIn(window.parent.location.hash);
}

/**
 * Shows `parameters` in the address bar, and returns whether that changed it.
 *
 * @param {Record<string, string>} parameters
 * @param {boolean} isMove whether Back shall lead to what was shown before.
 */
export function writeAddress(parameters, isMove = false) {
  const {location, history} = window.parent;
  if (!isOurs(location.hash)) return false; // another tab of TensorBoard is open, and the address is that tab's
  const hash = hashWith(location.hash, parameters);
  if (hash === location.hash) return false;
  if (isMove) history.pushState({...history.state, gradwatch: moves() + 1}, '', hash);
  else history.replaceState(history.state, '', hash);
  return true;
}

/** Returns how many moves lead back to where the tab was opened. Each entry of the browser's history knows its own number. */
function moves() {
  return Number(window.parent.history.state?.gradwatch ?? 0);
}

/** Goes back to what was shown before the last move, if there was one. */
export function undo() {
  if (moves() > 0) window.parent.history.back();
}

/**
 * Calls `changed` when somebody pastes or edits the address. `writeAddress` does not cause such a call.
 *
 * @param {(parameters: Record<string, string>) => void} changed
 */
export function followAddress(changed) {
  window.parent.addEventListener('hashchange', () => {
    const {hash} = window.parent.location;
    if (isOurs(hash)) changed(parametersIn(hash));
  });
}

/**
 * Calls `changed` now, and whenever TensorBoard's dark mode is switched.
 *
 * @param {(isDark: boolean) => void} changed
 */
export function followDarkMode(changed) {
  const body = window.parent.document.body;
  const tell = () => changed(body.classList.contains('dark-mode'));
  new MutationObserver(tell).observe(body, {attributes: true, attributeFilter: ['class']});
  tell();
}
