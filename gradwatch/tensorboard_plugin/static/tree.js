// @ts-check

/** Turns the names of layers and their depth into a tree of modules in forward order, and the tree into rows of a map. */

/**
 * A module or a layer.
 *
 * @typedef {object} Node
 * @property {string} name what it adds to the name of its parent.
 * @property {string} path
 * @property {Node[]} children none for a layer.
 * @property {number[]} layers the layers in it, as indices, in forward order.
 */

/** @typedef {Node & {children: GrowingNode[], index: Map<string, GrowingNode>}} GrowingNode */

/**
 * The box of a module or a layer, beside the map.
 *
 * @typedef {object} Box
 * @property {Node} node
 * @property {number} level how many modules are around it.
 * @property {number} top its first row.
 * @property {number} bottom one past its last row.
 * @property {boolean} isGroup whether it is a module.
 * @property {boolean} isCollapsed
 */

/**
 * Returns the tree of the layers that are wanted.
 *
 * @param {string[]} names
 * @param {number[]} depth
 * @param {(layer: number) => boolean} isWanted
 * @returns {Node}
 */
export function treeOf(names, depth, isWanted = () => true) {
  const order = names.map((_, index) => index).filter(isWanted);
  order.sort((one, other) => depth[one] - depth[other] || one - other);
  /** @type {GrowingNode} */
  const root = {name: '', path: '', children: [], layers: order, index: new Map()};
  for (const layer of order) insert(root, names[layer].split('.'), layer);
  return shortened(root, true);
}

/**
 * @param {GrowingNode} root
 * @param {string[]} parts
 * @param {number} layer
 */
function insert(root, parts, layer) {
  let node = root;
  parts.forEach((name, level) => {
    const isLayer = level === parts.length - 1;
    const key = isLayer ? `${name} ${layer}` : name; // a layer and a module can have the same name
    let child = node.index.get(key);
    if (!child) {
      child = {name, path: parts.slice(0, level + 1).join('.'), children: [], layers: [], index: new Map()};
      node.index.set(key, child);
      node.children.push(child);
    }
    node = child;
    node.layers.push(layer);
  });
}

/**
 * Joins each module whose only child is a module with that child: `model.layers` gets one box.
 *
 * @param {Node} node
 * @returns {Node}
 */
function shortened(node, isRoot = false) {
  let {name, path, children, layers} = node;
  while (!isRoot && children.length === 1) {
    name = `${name}.${children[0].name}`;
    ({path, children, layers} = children[0]);
  }
  return {name, path, layers, children: children.map((child) => shortened(child))};
}

const FEW_ROWS = 8; // fewer show nothing of where a network is sick
const MANY_ROWS = 28; // more have no room for a name on a small screen

/**
 * Returns the paths of the modules that are open at first: level by level, as long as every row has room for its name.
 *
 * @param {Node} root
 */
export function openedAtFirst(root) {
  /** @type {Set<string>} */
  const opened = new Set();
  let rows = root.children.length;
  let groups = root.children.filter(({children}) => children.length);
  while (groups.length) {
    const more = rows + groups.reduce((sum, {children}) => sum + children.length - 1, 0);
    if (rows >= FEW_ROWS && more > MANY_ROWS) break;
    groups.forEach(({path}) => opened.add(path));
    groups = groups.flatMap(({children}) => children.filter((child) => child.children.length));
    rows = more;
  }
  return opened;
}

/**
 * Returns the paths of all modules.
 *
 * @param {Node} root
 * @returns {Set<string>}
 */
export function allModules({children}) {
  const groups = children.filter((child) => child.children.length);
  return new Set(groups.flatMap((child) => [child.path, ...allModules(child)]));
}

/**
 * Returns the rows of the map, each with the indices of its layers, and the boxes beside it.
 *
 * @param {Node} root
 * @param {Set<string>} opened paths of open modules; each closed one is one row.
 * @returns {{rows: number[][], boxes: Box[]}}
 */
export function layOut(root, opened) {
  /** @type {number[][]} */
  const rows = [];
  /** @type {Box[]} */
  const boxes = [];
  const place = (/** @type {Node} */ node, /** @type {number} */ level) => {
    const isGroup = node.children.length > 0;
    const isCollapsed = isGroup && !opened.has(node.path);
    const box = {node, level, top: rows.length, bottom: 0, isGroup, isCollapsed};
    boxes.push(box);
    if (isGroup && !isCollapsed) node.children.forEach((child) => place(child, level + 1));
    else rows.push(node.layers);
    box.bottom = rows.length;
  };
  root.children.forEach((child) => place(child, 0));
  return {rows, boxes};
}

/**
 * Returns the paths of the modules that hold `layer`, from the outermost to the innermost.
 *
 * @param {Node} root
 * @param {number} layer
 */
export function modulesAround(root, layer) {
  const paths = [];
  /** @type {Node | undefined} */
  let node = root;
  while (node) {
    node = node.children.find((child) => child.children.length && child.layers.includes(layer));
    if (node) paths.push(node.path);
  }
  return paths;
}
