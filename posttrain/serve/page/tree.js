// The search tree as the page holds it, and where its nodes stand in the drawing.

export const NODE = { width: 208, height: 28 };
const COLUMN = NODE.width + 52;
const ROW = NODE.height + 8;
const FAMILY_GAP = 8; // more room between children of different parents
const MARGIN = 16;

export class SearchTree {
  constructor(prompt) {
    this.nodes = new Map();
    this.winner = null;
    this.put({ index: 0, parent: null, depth: 0, text: prompt, state: "open" });
  }

  get root() {
    return this.nodes.get(0);
  }

  // Nodes that are new or have changed, as a `step` event brings them. The root keeps the text of the prompt box.
  apply(nodes) {
    for (const node of nodes) {
      this.put(node.index === 0 ? { ...node, parent: null, text: this.root.text } : node);
    }
  }

  put(node) {
    const known = this.nodes.get(node.index);
    if (known) {
      Object.assign(known, node);
      return;
    }
    this.nodes.set(node.index, { value: null, score: null, logp: null, n_merged: 1, ...node, children: [] });
    this.nodes.get(node.parent)?.children.push(node.index);
  }

  // Siblings stand with the best score on top. Scores are set once, so nothing changes places later.
  children(node) {
    return node.children
      .map((index) => this.nodes.get(index))
      .sort((a, b) => (b.score ?? 0) - (a.score ?? 0) || a.index - b.index);
  }

  // From the root to the node.
  path(index) {
    const steps = [];
    for (let node = this.nodes.get(index); node; node = this.nodes.get(node.parent)) steps.unshift(node);
    return steps;
  }

  // The text from the end of the prompt to the end of the node.
  textUpTo(index) {
    return this.path(index).slice(1).map((node) => node.text).join("");
  }

  countBelow(node) {
    return this.children(node).reduce((sum, child) => sum + 1 + this.countBelow(child), 0);
  }

  values() {
    return [...this.nodes.values()].map((node) => node.value).filter((value) => value !== null);
  }
}

// Where every visible node stands: one column per step, from left to right. A column keeps the order of its parents,
// so no two edges cross. Its nodes stand as near to their parents as they can without touching, and it is centred on
// the root: the best stand on top, so the tree would climb with every step. A new step moves nothing drawn before.
export function layout(tree, closed = new Set()) {
  const places = new Map([[0, { x: 0, y: 0, node: tree.root, column: 0 }]]);
  const columns = [[tree.root]];
  for (let column = 1; ; column++) {
    const families = columns[column - 1].map((node) => (closed.has(node.index) ? [] : tree.children(node)));
    const nodes = families.flat();
    if (nodes.length === 0) break;
    const centred = families.flatMap((family) => family.map((_, i) => (i - (family.length - 1) / 2) * ROW));
    const wished = nodes.map((node, i) => places.get(node.parent).y + centred[i]);
    const y = spread(wished, offsets(nodes));
    const middle = (y[0] + y.at(-1)) / 2;
    nodes.forEach((node, i) => places.set(node.index, { x: column * COLUMN, y: y[i] - middle, node, column }));
    columns.push(nodes);
  }
  return { ...shiftedIntoView(places, columns.length), places, columns };
}

function offsets(nodes) {
  let y = 0;
  return nodes.map((node, i) => {
    if (i > 0) y += ROW + (node.parent === nodes[i - 1].parent ? 0 : FAMILY_GAP);
    return y;
  });
}

// The numbers nearest to `wished` in the sense of least squares of which each is at least its offset's distance above
// the one before it: isotonic regression by pooling adjacent violators.
export function spread(wished, offset) {
  const pools = [];
  wished.forEach((y, i) => {
    let pool = { sum: y - offset[i], n: 1 };
    while (pools.length > 0 && pools.at(-1).sum / pools.at(-1).n > pool.sum / pool.n) {
      const before = pools.pop();
      pool = { sum: before.sum + pool.sum, n: before.n + pool.n };
    }
    pools.push(pool);
  });
  const level = pools.flatMap((pool) => Array(pool.n).fill(pool.sum / pool.n));
  return level.map((base, i) => base + offset[i]);
}

function shiftedIntoView(places, nColumns) {
  const tops = [...places.values()].map((place) => place.y);
  const top = Math.min(...tops);
  for (const place of places.values()) {
    place.x += MARGIN;
    place.y += MARGIN - top;
  }
  return {
    width: nColumns * COLUMN - (COLUMN - NODE.width) + 2 * MARGIN,
    height: Math.max(...tops) - top + NODE.height + 2 * MARGIN,
  };
}
