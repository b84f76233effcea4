// The tree, drawn in SVG. The drawing is also the accessible tree: each node is a treeitem, one is in the tab order.

import { NODE, layout } from "./tree.js";

const SVG = "http://www.w3.org/2000/svg";
const ZOOMS = [0.2, 0.35, 0.5, 0.7, 0.85, 1, 1.25, 1.6, 2];
const TEXT = { left: 15, right: 18, digit: 8.2, gap: 8 }; // room for swatch, end mark, a digit, and between texts
const SMALLEST_UNASKED_ZOOM = 0.75; // below it texts are hard to read

export const STATE_WORDS = {
  open: "kept",
  pruned: "pruned",
  answer: "answer",
  cut: "cut off before its end",
};

export class TreeDrawing {
  // `frame` scrolls; `onLook(node)` shows a node's details.
  constructor(frame, onLook) {
    this.frame = frame;
    this.onLook = onLook;
    this.zoom = 1;
    this.isZoomChosen = false;
    frame.addEventListener("keydown", (event) => this.onKey(event));
    frame.addEventListener("click", (event) => this.onClick(event));
    frame.addEventListener("focusin", (event) => this.select(indexOf(event.target)));
    frame.addEventListener("pointerover", (event) => this.onHover(indexOf(event.target)));
    frame.addEventListener("pointerleave", () => this.onLook(this.tree?.nodes.get(this.selected)));
    // A reader who has scrolled or moved into the tree is not carried away by the next step.
    for (const touch of ["wheel", "pointerdown", "keydown"]) {
      frame.addEventListener(touch, () => (this.isFollowing = false), { passive: true });
    }
  }

  begin(tree) {
    this.tree = tree;
    this.scale = null;
    this.selected = 0;
    this.closed = new Set();
    this.items = new Map();
    this.edges = new Map();
    this.isFollowing = true;
    if (!this.isZoomChosen) this.zoom = 1;
    this.svg = element("svg", { role: "tree", "aria-label": "Search tree, from left to right", class: "tree" });
    this.edgeLayer = this.svg.appendChild(element("g", { "aria-hidden": "true" }));
    this.nodeLayer = this.svg.appendChild(element("g", { role: "none" }));
    this.frame.replaceChildren(this.svg);
  }

  draw(scale) {
    this.scale = scale;
    this.plan = layout(this.tree, this.closed);
    const winners = new Set(this.tree.winner === null ? [] : this.tree.path(this.tree.winner).map((n) => n.index));
    this.drop(this.items);
    this.drop(this.edges);
    for (const place of this.plan.places.values()) {
      this.drawNode(place, winners.has(place.node.index));
      if (place.column > 0) this.drawEdge(place, winners.has(place.node.index));
    }
    this.resize();
    if (this.isFollowing) this.reveal(this.plan.columns.at(-1)[0].index);
  }

  drop(drawn) {
    for (const [index, shape] of drawn) {
      if (this.plan.places.has(index)) continue;
      shape.remove();
      drawn.delete(index);
    }
  }

  drawNode({ x, y, node, column }, isWinner) {
    if (!this.items.has(node.index)) this.items.set(node.index, this.nodeLayer.appendChild(newNode(node)));
    const item = this.items.get(node.index);
    const siblings = column === 0 ? [node] : this.tree.children(this.tree.nodes.get(node.parent));
    const isClosed = this.closed.has(node.index);
    setAttributes(item, {
      class: `node ${node.state}${isWinner ? " winner" : ""}${node.index === 0 ? " root" : ""}`,
      transform: `translate(${x} ${y})`,
      tabindex: node.index === this.selected ? 0 : -1,
      "aria-label": label(node, this.scale, isWinner),
      "aria-level": column + 1,
      "aria-posinset": siblings.indexOf(node) + 1,
      "aria-setsize": siblings.length,
      "aria-selected": node.index === this.selected,
    });
    if (node.children.length > 0) item.setAttribute("aria-expanded", !isClosed);
    this.scale.paint(item, node.value);
    item.querySelector(".hidden-count").textContent = isClosed ? `+${this.tree.countBelow(node)}` : "";
    const number = node.value === null ? "" : this.scale.format(node.value);
    const times = node.n_merged > 1 ? `×${node.n_merged}` : "";
    const numberStart = NODE.width - TEXT.right - number.length * TEXT.digit;
    item.querySelector(".number").textContent = number;
    item.querySelector(".times").textContent = times;
    item.querySelector(".times").setAttribute("x", numberStart - TEXT.gap);
    const end = numberStart - TEXT.gap - (times ? times.length * TEXT.digit + TEXT.gap : 0);
    fitText(item.querySelector(".step"), node.text, end - TEXT.left, isWinner);
  }

  drawEdge({ x, y, node }, isWinner) {
    const from = this.plan.places.get(node.parent);
    const [x0, y0, y1] = [from.x + NODE.width, from.y + NODE.height / 2, y + NODE.height / 2];
    const middle = (x0 + x) / 2;
    if (!this.edges.has(node.index)) this.edges.set(node.index, this.edgeLayer.appendChild(element("path", {})));
    setAttributes(this.edges.get(node.index), {
      class: `edge ${node.state}${isWinner ? " winner" : ""}`,
      d: `M${x0} ${y0}C${middle} ${y0} ${middle} ${y1} ${x} ${y1}`,
    });
  }

  resize() {
    const { width, height } = this.plan;
    setAttributes(this.svg, {
      viewBox: `0 0 ${width} ${height}`,
      width: width * this.zoom,
      height: height * this.zoom,
    });
  }

  // One notch nearer (+1) or farther (−1).
  zoomBy(direction) {
    const next = direction > 0 ? ZOOMS.find((zoom) => zoom > this.zoom) : ZOOMS.findLast((zoom) => zoom < this.zoom);
    this.isZoomChosen = true;
    this.setZoom(next ?? this.zoom);
  }

  // The whole tree in the frame, if it may be as small as that.
  fit(smallest = 0) {
    if (!this.plan) return;
    const room = [this.frame.clientWidth / this.plan.width, this.frame.clientHeight / this.plan.height];
    this.setZoom(Math.max(smallest, Math.min(1, ...room)));
  }

  // The search is over: show its end, unless the reader is looking elsewhere.
  settle(winner) {
    if (this.isFollowing && !this.isZoomChosen) this.fit(SMALLEST_UNASKED_ZOOM);
    if (this.isFollowing) this.reveal(winner);
    this.isFollowing = false;
    this.select(winner);
  }

  setZoom(zoom) {
    if (!this.plan) return;
    this.zoom = zoom;
    this.resize();
    this.reveal(this.selected);
  }

  // Bring a node into view without moving the page, with some room around it.
  reveal(index) {
    const place = this.plan.places.get(index);
    if (!place) return;
    const { clientWidth, clientHeight, scrollLeft, scrollTop } = this.frame;
    const [x, y, width, height] = [place.x, place.y, NODE.width, NODE.height].map((length) => length * this.zoom);
    const [roomX, roomY] = [Math.min(48, (clientWidth - width) / 2), Math.min(120, (clientHeight - height) / 2)];
    this.frame.scrollLeft = within(scrollLeft, x + width + roomX - clientWidth, x - roomX);
    this.frame.scrollTop = within(scrollTop, y + height + roomY - clientHeight, y - roomY);
  }

  select(index) {
    if (index === null) return;
    const before = this.items.get(this.selected);
    if (before) setAttributes(before, { tabindex: -1, "aria-selected": false });
    this.selected = index;
    setAttributes(this.items.get(index), { tabindex: 0, "aria-selected": true });
    this.onLook(this.tree.nodes.get(index));
  }

  focus(node) {
    if (!node) return;
    this.items.get(node.index).focus({ preventScroll: true });
    this.reveal(node.index);
  }

  toggle(node) {
    if (node.children.length === 0) return;
    if (!this.closed.delete(node.index)) this.closed.add(node.index);
    this.draw(this.scale);
  }

  onClick(event) {
    const index = indexOf(event.target);
    if (index === null) return;
    this.items.get(index).focus({ preventScroll: true });
    if (event.detail === 2 || event.target.closest(".hidden-count")) this.toggle(this.tree.nodes.get(index));
  }

  onHover(index) {
    if (index !== null) this.onLook(this.tree.nodes.get(index));
  }

  onKey(event) {
    const index = indexOf(event.target);
    if (index === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const node = this.tree.nodes.get(index);
    const { column } = this.plan.places.get(index);
    const sameStep = this.plan.columns[column];
    const place = sameStep.indexOf(node);
    const moves = {
      ArrowLeft: () => this.focus(this.tree.nodes.get(node.parent)),
      ArrowRight: () => (this.closed.has(index) ? this.toggle(node) : this.focus(this.tree.children(node)[0])),
      ArrowUp: () => this.focus(sameStep[place - 1]),
      ArrowDown: () => this.focus(sameStep[place + 1]),
      Home: () => this.focus(this.tree.root),
      End: () => this.focus(this.tree.nodes.get(this.tree.winner) ?? this.plan.columns.at(-1)[0]),
      Enter: () => this.toggle(node),
      " ": () => this.toggle(node),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    moves[event.key]();
  }
}

function newNode(node) {
  const { width, height } = NODE;
  const item = element("g", { role: "treeitem", "data-index": node.index });
  item.append(
    element("rect", { class: "box", width, height, rx: 6 }),
    element("rect", { class: "swatch", x: 4, y: 4, width: 5, height: height - 8, rx: 2.5 }),
    element("text", { class: "step", x: TEXT.left, y: height / 2, dy: "0.35em" }),
    element("text", { class: "times", y: height / 2, dy: "0.35em", "text-anchor": "end" }),
    element("text", { class: "number", x: width - TEXT.right, y: height / 2, dy: "0.35em", "text-anchor": "end" }),
    element("rect", { class: "end-mark", x: width - 13, y: height / 2 - 4, width: 8, height: 8 }),
    element("text", { class: "hidden-count", x: width + 6, y: height / 2, dy: "0.35em" }),
  );
  return item;
}

function label(node, scale, isWinner) {
  if (node.index === 0) return `Prompt: ${node.text}`;
  const value = node.value === null ? "" : `, value ${scale.format(node.value)}`;
  const state = isWinner ? "on the chosen path" : STATE_WORDS[node.state];
  return `Step ${node.depth}${value}, ${state}: ${node.text.trim() || "empty line"}`;
}

// As much of the text as there is room for; measured anew only when the room or the weight of the letters changes.
function fitText(shape, text, room, isBold) {
  const fitted = `${room} ${isBold}`;
  if (shape.dataset.fitted === fitted) return;
  shape.dataset.fitted = fitted;
  for (let n = 48; n > 0; n--) {
    shape.textContent = shortened(text, n);
    if (shape.getComputedTextLength() <= room) return;
  }
}

// A step on one line of at most n characters, its line breaks shown.
export function shortened(text, n) {
  const start = text.trimStart().slice(0, 8 * n); // a prompt may be as long as a book
  const line = start.trimEnd().replace(/\s*\n\s*/g, " ⏎ ") || (text === "" ? "(end)" : "⏎");
  const characters = [...line];
  return characters.length <= n ? line : `${characters.slice(0, n - 1).join("").trimEnd()}…`;
}

function indexOf(target) {
  const item = target.closest?.("[data-index]");
  return item ? Number(item.dataset.index) : null;
}

function within(number, low, high) {
  return Math.min(Math.max(number, low), Math.max(high, 0));
}

export function element(name, attributes) {
  return setAttributes(document.createElementNS(SVG, name), attributes);
}

function setAttributes(shape, attributes) {
  for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
  return shape;
}
