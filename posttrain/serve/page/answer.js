// One answer: its text as it streams, then its tokens with V at each, and V drawn along them.

import { element } from "./drawing.js";

const PLOT = { width: 400, height: 64 };

export class Answer {
  constructor(section) {
    this.part = (name) => section.querySelector(`.${name}`);
    this.part("cursor").addEventListener("input", (event) => this.pointAt(Number(event.target.value)));
    this.part("text").addEventListener("pointerover", (event) => {
      const place = event.target.dataset.place;
      if (place !== undefined) this.pointAt(Number(place));
    });
  }

  // What to ask the values of: without its EOS, after which V is 0.
  get completion() {
    return this.tokenIds?.length ? this.tokenIds : this.text;
  }

  begin(title) {
    this.text = "";
    this.tokenIds = null; // of a search's winner; other answers are known by their text alone
    this.tokens = null;
    this.part("title").textContent = title;
    this.part("text").replaceChildren();
    this.part("summary").textContent = "";
    this.part("curve").hidden = true;
  }

  append(text) {
    this.text += text;
    this.part("text").append(text);
  }

  summarise(words) {
    this.part("summary").textContent = words;
  }

  // `tokens`: {text, value} in order
  showValues(tokens) {
    this.tokens = tokens;
    this.part("text").replaceChildren(...tokens.map(tokenElement));
    const cursor = this.part("cursor");
    cursor.max = tokens.length - 1;
    this.part("curve").hidden = false;
  }

  // `scale` is shared by both answers, so that their colours and curves can be compared.
  draw(scale) {
    if (!this.tokens) return;
    this.scale = scale;
    [...this.part("text").children].forEach((span, i) => scale.paint(span, this.tokens[i].value));
    this.part("high").textContent = scale.format(scale.high);
    this.part("low").textContent = scale.format(scale.low);
    this.line = element("line", { class: "cursor-line", y1: 0, y2: PLOT.height });
    const points = this.tokens.map((token, i) => `${this.x(i)},${(1 - scale.level(token.value)) * PLOT.height}`);
    const curve = element("polyline", { class: "value-line", points: points.join(" ") });
    this.part("plot").replaceChildren(curve, this.line);
    this.part("plot").setAttribute("viewBox", `0 0 ${PLOT.width} ${PLOT.height}`);
    this.pointAt(this.tokens.length - 1);
  }

  x(place) {
    return ((place / Math.max(this.tokens.length - 1, 1)) * PLOT.width).toFixed(2);
  }

  pointAt(place) {
    const token = this.tokens?.[place];
    if (!token) return;
    const spans = this.part("text").children;
    this.part("text").querySelector(".pointed")?.classList.remove("pointed");
    spans[place].classList.add("pointed");
    this.line.setAttribute("x1", this.x(place));
    this.line.setAttribute("x2", this.x(place));
    const value = this.scale.format(token.value);
    const words = `Token ${place + 1} of ${this.tokens.length}, “${visible(token.text)}”: V = ${value}`;
    this.part("cursor").value = place;
    this.part("cursor").setAttribute("aria-valuetext", words);
    this.part("pointed-token").textContent = words;
  }
}

function tokenElement(token, place) {
  const span = document.createElement("span");
  span.className = "token";
  span.dataset.place = place;
  span.textContent = token.text;
  return span;
}

function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll(" ", "␣");
}
