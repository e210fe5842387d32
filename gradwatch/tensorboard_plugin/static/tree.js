/** Layer names and their depth → modules, in forward order, as a tree; and the rows of a map that it comes to. */

/**
 * A node: `name` (what it adds to its parent's), `path`, `children` (empty for a layer), `layers` (indices, in forward
 * order).
 */
export function treeOf(names, depth, query = '') {
  const wanted = query.toLowerCase();
  const order = names.map((_, index) => index).filter((index) => names[index].toLowerCase().includes(wanted));
  order.sort((one, other) => depth[one] - depth[other] || one - other);
  const root = {name: '', path: '', children: [], layers: order, index: new Map()};
  for (const layer of order) insert(root, names[layer].split('.'), layer);
  return shortened(root, true);
}

function insert(root, parts, layer) {
  let node = root;
  parts.forEach((name, level) => {
    const isLayer = level === parts.length - 1;
    const key = isLayer ? `${name} ${layer}` : name; // a layer may be called as a module beside it
    if (!node.index.has(key)) {
      const child = {name, path: parts.slice(0, level + 1).join('.'), children: [], layers: [], index: new Map()};
      node.index.set(key, child);
      node.children.push(child);
    }
    node = node.index.get(key);
    node.layers.push(layer);
  });
}

/** A module whose only child is a module is one with it: `model.layers` stands in one box. */
function shortened(node, isRoot = false) {
  let {name, path, children, layers} = node;
  while (!isRoot && children.length === 1) {
    name = `${name}.${children[0].name}`;
    ({path, children, layers} = children[0]);
  }
  return {name, path, layers, children: children.map((child) => shortened(child))};
}

/**
 * The rows of the map, and the boxes beside it.
 *
 * @returns {{rows: number[][], boxes: object[]}} rows: indices of layers; boxes: {node, level, top, bottom, isGroup,
 *   isCollapsed}, top and bottom in rows.
 */
export function layOut(root, collapsed) {
  const rows = [];
  const boxes = [];
  const place = (node, level) => {
    const isGroup = node.children.length > 0;
    const isCollapsed = isGroup && collapsed.has(node.path);
    const box = {node, level, top: rows.length, bottom: 0, isGroup, isCollapsed};
    boxes.push(box);
    if (isGroup && !isCollapsed) node.children.forEach((child) => place(child, level + 1));
    else rows.push(node.layers);
    box.bottom = rows.length;
  };
  root.children.forEach((child) => place(child, 0));
  return {rows, boxes};
}

/** Paths of the modules that hold `layer`. */
export function modulesAround(root, layer) {
  const paths = [];
  let node = root;
  while (node) {
    node = node.children.find((child) => child.children.length && child.layers.includes(layer));
    if (node) paths.push(node.path);
  }
  return paths;
}
