/**
 * Questions to the server. Enters: names and numbers. Leaves: parsed JSON, or a header with a Float32Array.
 *
 * Addresses are relative, so that they hold under any path prefix.
 */

/** @returns {{header: object, values: Float32Array}} what wire.py packed. */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const values = new Float32Array(buffer, 4 + length);
  const expected = header.shape.reduce((product, size) => product * size, 1);
  if (values.length !== expected) throw new Error(`expected ${expected} numbers, received ${values.length}.`);
  return {header, values};
}

/** Answers to a question with a JSON answer. */
export async function ask(question, parameters = {}) {
  return (await respond(question, parameters)).json();
}

/** Answers to a question about an array. */
export async function askForArray(question, parameters) {
  return unpack(await (await respond(question, parameters)).arrayBuffer());
}

async function respond(question, parameters) {
  const query = new URLSearchParams(parameters).toString();
  let response;
  try {
    response = await fetch(`./${question}${query && '?'}${query}`);
  } catch {
    throw new Error('TensorBoard does not answer. Is it still running?');
  }
  if (!response.ok) throw new Error(await complaint(response));
  return response;
}

async function complaint(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `TensorBoard answered with status ${response.status}.`;
  }
}
