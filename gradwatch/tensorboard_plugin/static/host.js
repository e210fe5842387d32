/**
 * TensorBoard around the tab: its reloads, its address bar, its dark mode.
 *
 * The tab is a frame of the same origin. TensorBoard reads `p.<plugin>.<name>` from its address; nothing in it writes
 * there for us, so this file does, beside TensorBoard's own parts.
 */

const PREFIX = 'p.gradwatch.';

/** Calls `reloaded` whenever TensorBoard has read its files again. */
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

/** {name: text} of the tab's own parts of an address' hash. */
export function parametersIn(hash) {
  const parameters = {};
  for (const part of hash.replace(/^#/, '').split('&')) {
    const [name, value = ''] = part.split('=');
    if (!name.startsWith(PREFIX)) continue;
    try {
      parameters[name.slice(PREFIX.length)] = decodeURIComponent(value);
    } catch {
      // a percent sign that encodes nothing: somebody typed it
    }
  }
  return parameters;
}

/** `hash` with the tab's own parts replaced by `parameters`. */
export function hashWith(hash, parameters) {
  const others = hash
    .replace(/^#/, '')
    .split('&')
    .filter((part) => part && !part.startsWith(PREFIX));
  const own = Object.entries(parameters).map(([name, text]) => `${PREFIX}${name}=${encodeURIComponent(text)}`);
  return `#${[...others, ...own].join('&')}`;
}

function isOurs(hash) {
  return /^#gradwatch(&|$)/.test(hash);
}

export function readAddress() {
  return parametersIn(window.parent.location.hash);
}

/** Shows `parameters` in the address bar, without an entry in the history for every move. */
export function writeAddress(parameters) {
  const {location, history} = window.parent;
  if (!isOurs(location.hash)) return; // another tab is open: its address is not ours
  const hash = hashWith(location.hash, parameters);
  if (hash !== location.hash) history.replaceState(history.state, '', hash);
}

/** Calls `changed(parameters)` when somebody pastes or edits the address; what `writeAddress` writes is no such change. */
export function followAddress(changed) {
  window.parent.addEventListener('hashchange', () => {
    const {hash} = window.parent.location;
    if (isOurs(hash)) changed(parametersIn(hash));
  });
}

/** Calls `changed(isDark)` now and whenever TensorBoard's dark mode is switched. */
export function followDarkMode(changed) {
  const body = window.parent.document.body;
  const tell = () => changed(body.classList.contains('dark-mode'));
  new MutationObserver(tell).observe(body, {attributes: true, attributeFilter: ['class']});
  tell();
}
