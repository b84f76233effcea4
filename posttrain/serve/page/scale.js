// Numbers and the colour scale of values. The colours themselves are the style sheet's: it mixes them from --level.

export class Scale {
  // The ends are the smallest and the largest value, rounded outwards to a round number.
  constructor(values) {
    const low = Math.min(...values);
    const high = Math.max(...values);
    const step = roundStep(high - low || Math.abs(high) || 1);
    this.low = values.length ? Math.floor(low / step) * step : 0;
    this.high = values.length ? Math.ceil(high / step) * step : 1;
    if (this.low === this.high) this.high += step;
    this.digits = Math.min(6, Math.max(2, 1 - Math.floor(Math.log10(this.high - this.low))));
  }

  level(value) {
    return (value - this.low) / (this.high - this.low);
  }

  paint(element, value) {
    element.classList.toggle("has-value", value !== null);
    if (value !== null) element.style.setProperty("--level", this.level(value).toFixed(4));
  }

  format(value) {
    return number(value, this.digits);
  }
}

// A tenth of the power of ten above the span, so that the ends lie close to the values.
function roundStep(span) {
  return 10 ** Math.ceil(Math.log10(span) - 1);
}

export function number(value, digits) {
  return value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");
}
