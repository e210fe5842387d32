/** What is looked at, and the same as parts of an address. Knows nothing of the page. */

export const DEFAULTS = Object.freeze({
  runs: null, // names; null: the tab chooses
  statistic: 'grad_norm',
  layer: null,
  step: null,
  finding: null, // `${run}|${kind}|${layer}|${step}`
  from: null, // first and last step in view; null: all
  to: null,
});

const NUMBERS = new Set(['step', 'from', 'to']);

/** As {name: text}; what is as by default is left out. */
export function toParameters(state) {
  const parameters = {};
  for (const name of Object.keys(DEFAULTS)) {
    const value = state[name];
    if (value === DEFAULTS[name] || value === null) continue;
    parameters[name] = name === 'runs' ? JSON.stringify(value) : String(value);
  }
  return parameters;
}

/** The reverse; what makes no sense is as by default. */
export function fromParameters(parameters) {
  const state = {...DEFAULTS};
  for (const [name, text] of Object.entries(parameters)) {
    if (!Object.hasOwn(DEFAULTS, name)) continue;
    const value = name === 'runs' ? names(text) : NUMBERS.has(name) ? wholeNumber(text) : String(text);
    if (value !== null) state[name] = value;
  }
  if (state.from === null || state.to === null || state.from > state.to) state.from = state.to = null;
  return state;
}

function names(text) {
  try {
    const value = JSON.parse(text);
    return Array.isArray(value) && value.every((name) => typeof name === 'string') ? value : null;
  } catch {
    return null;
  }
}

function wholeNumber(text) {
  return /^\d{1,15}$/.test(text) ? Number(text) : null;
}
