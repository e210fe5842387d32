// @ts-check

/**
 * Asks the server, and unpacks its answers. The types below describe what it answers.
 *
 * Addresses are relative, so that they hold under any path prefix.
 */

/**
 * A run in the list of runs.
 *
 * @typedef {object} ListedRun
 * @property {string} run its name.
 * @property {number} age seconds since something was written.
 * @property {string} version another one once something was added.
 */

/**
 * A statistic that a run has logged.
 *
 * @typedef {object} Statistic
 * @property {string} name as in an address, for example `grad_norm`.
 * @property {string} label for people.
 * @property {boolean} isShare whether it lies between 0 and 1, on a linear scale; otherwise the scale is logarithmic.
 * @property {boolean} isRatio whether 1 is normal, in the middle of the scale.
 */

/**
 * The layers and steps of a run.
 *
 * @typedef {object} Overview
 * @property {string[]} layers
 * @property {number[]} depth of each layer; the input comes first.
 * @property {number[]} size entries of each layer.
 * @property {number} rows how many steps were logged.
 * @property {number} [firstStep] missing where there is no row.
 * @property {number} [lastStep] missing where there is no row.
 * @property {Statistic[]} statistics
 */

/**
 * The fields of gradwatch.Finding that the tab reads. A number that is not finite is null.
 *
 * @typedef {object} Finding
 * @property {string} kind
 * @property {string} severity `error` or `warning`.
 * @property {string} layer '' for the whole run.
 * @property {string[]} layers
 * @property {number} step the first sick one.
 * @property {number} raised_step
 * @property {number} last_step
 * @property {number | null} value
 * @property {number | null} threshold
 * @property {string} measured
 * @property {string} message
 * @property {string} [figure] what was measured, in words, where the usual words of its kind do not say it.
 * @property {string} cause
 * @property {{name: string, text: string}[]} remedies
 * @property {string[]} actions what recovery has done about it, a sentence each, in order.
 * @property {boolean} ended
 * @property {number | null} follows the index of the finding that may have led to this one.
 */

/**
 * The findings of a run, by onset, and how far it has come.
 *
 * @typedef {object} FindingsAnswer
 * @property {Finding[]} findings
 * @property {string[]} problems what could not be read.
 * @property {number} [steps] attempted updates, where some of them were not measured.
 * @property {number} [unmeasured] how many of them nothing is known of.
 * @property {string} [unjudged] what rules that failed have not looked for, in words.
 * @property {Record<string, number>} [lost] how much could not be written, by what it is.
 * @property {number} [rows]
 * @property {number | null} [lastStep]
 * @property {number | null} [loss] the last one that was observed.
 * @property {boolean} [isLossFinite]
 * @property {boolean} [hasFailed] whether the question failed, and is to be asked again.
 */

/**
 * The headers of answers that hold an array, by question.
 *
 * @typedef {object} Headers
 * @property {CellsHeader} cells
 * @property {CourseHeader} course
 * @property {CurveHeader} curve
 * @property {ProfileHeader} profile
 * @property {EntriesHeader} entries
 */

/**
 * Of a map: values are (cells × layers).
 *
 * @typedef {object} CellsHeader
 * @property {number[]} shape
 * @property {number[]} edges the first step of each cell, and one past the last step.
 * @property {[number, number] | null} scale the lowest and the highest colour; null where no value is positive.
 * @property {[number, number] | null} clamp the same of a narrower scale.
 * @property {(number | null)[]} levels the median gradient norm of each layer.
 * @property {number[]} clipped how many steps of each cell were clipped.
 * @property {number[]} skipped how many steps of each cell were skipped.
 */

/** @typedef {{shape: number[], rows: string[], edges: number[]}} CourseHeader of the whole run: values are (rows × cells). */

/** @typedef {{shape: number[], rows: string[], steps: number[]}} CurveHeader of one layer: values are (rows × steps). */

/**
 * Of one step: values are (rows × layers).
 *
 * @typedef {object} ProfileHeader
 * @property {number[]} shape
 * @property {string[]} rows
 * @property {number} step the logged one.
 * @property {number} since the first step that the logged row covers.
 */

/**
 * Of a layer's histograms: values are (steps × bins), the share of entries in each bin.
 *
 * @typedef {object} EntriesHeader
 * @property {number[]} shape
 * @property {number[]} steps
 * @property {[number, number]} axis the lower edge of the first bin and the upper edge of the last one.
 */

/**
 * @template Header
 * @typedef {{header: Header, values: Float32Array}} ArrayAnswer
 */

/** @typedef {Record<string, string | number>} Parameters */

/**
 * Unpacks what wire.py packed: the header's length, the header as JSON, and the numbers.
 *
 * @param {ArrayBuffer} buffer
 * @returns {ArrayAnswer<any>}
 */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const values = new Float32Array(buffer, 4 + length);
  const expected = header.shape.reduce(
    (/** @type {number} */ product, /** @type {number} */ size) => product * size,
    1,
  );
  if (values.length !== expected) throw new Error(`expected ${expected} numbers, received ${values.length}.`);
  return {header, values};
}

/**
 * Asks a question whose answer is JSON.
 *
 * @param {string} question
 * @param {Parameters} parameters
 * @returns {Promise<any>}
 */
export async function ask(question, parameters = {}) {
  return (await respond(question, parameters)).json();
}

/**
 * Asks a question whose answer is an array.
 *
 * @template {keyof Headers} Question
 * @param {Question} question
 * @param {Parameters} parameters
 * @returns {Promise<ArrayAnswer<Headers[Question]>>}
 */
export async function askForArray(question, parameters) {
  return unpack(await (await respond(question, parameters)).arrayBuffer());
}

/**
 * @param {string} question
 * @param {Parameters} parameters
 */
async function respond(question, parameters) {
  const texts = Object.entries(parameters).map(([name, value]) => [name, String(value)]);
  const query = new URLSearchParams(texts).toString();
  let response;
  try {
    response = await fetch(`./${question}${query && '?'}${query}`);
  } catch {
    throw new Error('TensorBoard does not answer. Is it still running?');
  }
  if (!response.ok) throw new Error(await complaint(response));
  return response;
}

/**
 * @param {Response} response
 * @returns {Promise<string>}
 */
async function complaint(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `TensorBoard answered with status ${response.status}.`;
  }
}

/**
 * Returns the text of whatever was thrown.
 *
 * @param {unknown} thrown
 */
export function messageOf(thrown) {
  return thrown instanceof Error ? thrown.message : String(thrown);
}
