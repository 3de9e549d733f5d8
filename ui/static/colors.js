// Colors as 32-bit words (little-endian RGBA, as ImageData wants them). No DOM.

export const OPAQUE = 0xff000000;

/** Heat 1..255: a black body from black over red, orange and yellow to white, lighter with every step, the CT still to be seen through it; 0 is transparent. */
export const THERMAL = Uint32Array.from({ length: 256 }, (_, heat) => {
  if (!heat) return 0;
  const t = heat / 255;
  const [r, g, b] = [70 + 480 * t, 380 * (t - 0.3), 680 * (t - 0.62)].map((v) => Math.max(0, Math.min(255, Math.round(v))));
  return word([r, g, b], 0.3 + 0.35 * t);
});

export function word([r, g, b], alpha = 1) {
  return ((Math.round(255 * Math.min(1, alpha)) << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

export function css(color) {
  return `rgba(${color & 255},${(color >> 8) & 255},${(color >> 16) & 255},${((color >>> 24) / 255).toFixed(2)})`;
}

/** "#rrggbb" as [r, g, b]. */
export function rgb(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}

/** Gray words of every int16 value (index: value + 32768) for a window. */
export function grayTable(width, level) {
  const low = level - width / 2;
  const table = new Uint32Array(65536); // a loop: this runs on every move of a window drag
  for (let n = 0; n < table.length; n++) {
    const gray = Math.max(0, Math.min(255, Math.round(((n - 32768 - low) / width) * 255)));
    table[n] = OPAQUE | (gray << 16) | (gray << 8) | gray;
  }
  return table;
}
