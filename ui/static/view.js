// Three linked planes on Canvas 2D. Radiological convention: the patient's right is on the left of axial and coronal planes.
//
// A plane is two stacked canvases: the lower holds CT and overlays (redrawn when voxels, slice or window change), the upper holds
// what follows the mouse (brush ring, crosshair, letters), so that moving the mouse never touches a voxel.

import { THERMAL, css, grayTable, word } from "./colors.js";
import { orientation } from "./nifti.js";

// What grows toward the right and toward the bottom of the screen.
const DIRECTIONS = {
  axial: { right: "L", down: "P" },
  coronal: { right: "L", down: "I" },
  sagittal: { right: "P", down: "I" },
};
const OPPOSITE = { R: "L", L: "R", A: "P", P: "A", S: "I", I: "S" };
const WORLD_AXIS = { R: 0, L: 0, A: 1, P: 1, S: 2, I: 2 };
const INK = "#dfe7ee";
const FAINT = "rgba(223,231,238,0.55)";
const CROSS = "rgba(94,200,255,0.75)";

/** Everything the planes show. Voxel positions are in file axes. */
export class Scene {
  constructor(image) {
    Object.assign(this, image); // dims, spacing, affine, data
    this.orientation = orientation(image);
    this.strides = [1, image.dims[0], image.dims[0] * image.dims[1]];
    this.cursor = image.dims.map((n) => Math.floor(n / 2));
    this.focus = image.dims.map((n) => (n - 1) / 2);
    this.zoom = 1;
    this.labels = null; // label map under the active organ
    this.mask = null; // the active organ's own voxels
    this.activeId = 0;
    this.colors = new Map(); // label id -> [r, g, b]
    this.hidden = new Uint8Array(256);
    this.heat = null;
    this.flags = null; // attention of the active organ: one bit per criterion
    this.flagBits = 0; // which of them are shown; 0 shows the heat of all organs
    this.box = null; // the current attention component
    this.compare = null; // another mask of the active organ, outlined in white
    this.seeds = new Map(); // voxel -> 1 inside, 0 outside: strokes to grow a region from
    this.lasso = []; // corners, voxel coordinates
    this.show = { labels: true, attention: true, fill: true, outline: true, crosshair: true };
    this.opacity = 0.22;
    this.setWindow(400, 40);
  }

  setWindow(width, level) {
    this.window = { width: Math.max(1, Math.round(width)), level: Math.round(level) };
    this.gray = grayTable(this.window.width, this.window.level);
  }

  index([i, j, k]) {
    return i + this.strides[1] * j + this.strides[2] * k;
  }

  position(voxel) {
    const [nx, ny] = this.dims;
    return [voxel % nx, Math.floor(voxel / nx) % ny, Math.floor(voxel / (nx * ny))];
  }

  /** Label id -> itself where it is shown, else 0. */
  shownIds() {
    return Uint8Array.from({ length: 256 }, (_, id) => (this.hidden[id] ? 0 : id));
  }

  clamp(position) {
    return position.map((p, a) => Math.max(0, Math.min(this.dims[a] - 1, Math.round(p))));
  }

  labelAt(voxel) {
    if (this.mask && this.mask[voxel]) return this.activeId;
    const id = this.labels ? this.labels[voxel] : 0;
    return id === this.activeId ? 0 : id;
  }
}

/** Text with a dark halo: legible on black, on bone and in a lung window. */
function write(c, text, x, y, { font = "12px system-ui, sans-serif", color = INK, align = "left" } = {}) {
  Object.assign(c, { font, textAlign: align, textBaseline: "middle", lineJoin: "round", lineWidth: 3, strokeStyle: "rgba(0,0,0,0.8)", fillStyle: color });
  c.strokeText(text, x, y);
  c.fillText(text, x, y);
}

export class Plane {
  constructor(element, name) {
    Object.assign(this, { element, name, ring: null, scene: null });
    this.base = element.appendChild(document.createElement("canvas"));
    this.top = element.appendChild(document.createElement("canvas"));
    this.layers = ["ct", "heat", "fill"].reduce((all, key) => ({ ...all, [key]: document.createElement("canvas") }), {});
    new ResizeObserver(() => this.resize()).observe(element);
  }

  setScene(scene) {
    this.scene = scene;
    const { right, down } = DIRECTIONS[this.name];
    const along = (letter) => {
      const world = WORLD_AXIS[letter];
      const axis = scene.orientation.axis[world];
      const grows = "RAS".includes(letter) ? 1 : -1;
      return { axis, flip: scene.orientation.sign[world] !== grows, size: scene.dims[axis], stride: scene.strides[axis], mm: scene.spacing[axis] };
    };
    this.u = along(right);
    this.v = along(down);
    const depth = 3 - this.u.axis - this.v.axis;
    this.w = { axis: depth, size: scene.dims[depth], stride: scene.strides[depth] };
    for (const canvas of Object.values(this.layers)) Object.assign(canvas, { width: this.u.size, height: this.v.size });
    this.pixels = {};
    for (const [key, canvas] of Object.entries(this.layers)) {
      const context = canvas.getContext("2d", { willReadFrequently: true });
      const image = context.createImageData(this.u.size, this.v.size);
      this.pixels[key] = { context, image, words: new Uint32Array(image.data.buffer) };
    }
    this.slice = new Uint8Array(this.u.size * this.v.size);
    this.other = null;
    this.resize();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !height) return;
    for (const canvas of [this.base, this.top]) Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    Object.assign(this, { width, height, ratio });
    this.draw();
  }

  // --- geometry: screen pixel <-> voxel ---

  get scale() {
    const fit = Math.min(this.width / (this.u.size * this.u.mm), this.height / (this.v.size * this.v.mm));
    return fit * this.scene.zoom; // screen pixels per mm
  }

  place() {
    const k = this.scale;
    const at = (a) => (a.flip ? a.size - 1 - this.scene.focus[a.axis] : this.scene.focus[a.axis]) + 0.5;
    const [sx, sy] = [this.u.mm * k, this.v.mm * k];
    return { sx, sy, ox: this.width / 2 - at(this.u) * sx, oy: this.height / 2 - at(this.v) * sy };
  }

  /** Voxel coordinates (fractions; the center of a voxel is its integer) under a screen position of this plane. */
  toVoxel(px, py) {
    const { sx, sy, ox, oy } = this.place();
    const position = [...this.scene.cursor];
    const set = (a, at) => (position[a.axis] = a.flip ? a.size - 1 - at : at);
    set(this.u, (px - ox) / sx - 0.5);
    set(this.v, (py - oy) / sy - 0.5);
    return position;
  }

  /** Screen position of a voxel's center. */
  toScreen(position) {
    const { sx, sy, ox, oy } = this.place();
    const at = (a) => (a.flip ? a.size - 1 - position[a.axis] : position[a.axis]) + 0.5;
    return [ox + at(this.u) * sx, oy + at(this.v) * sy];
  }

  pan(dx, dy) {
    const { sx, sy } = this.place();
    const { focus, dims } = this.scene;
    const move = (a, d) => (focus[a.axis] = Math.max(0, Math.min(dims[a.axis] - 1, focus[a.axis] + (a.flip ? d : -d))));
    move(this.u, dx / sx);
    move(this.v, dy / sy);
  }

  // --- drawing ---

  draw() {
    if (!this.scene || !this.width) return;
    this.fillPixels();
    const c = this.base.getContext("2d");
    const { sx, sy, ox, oy } = this.place();
    const [w, h] = [this.u.size * sx, this.v.size * sy];
    c.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    c.fillStyle = "#000";
    c.fillRect(0, 0, this.width, this.height);
    const { show } = this.scene;
    c.imageSmoothingEnabled = true;
    c.imageSmoothingQuality = "high";
    c.drawImage(this.layers.ct, ox, oy, w, h);
    if (this.hasHeat) c.drawImage(this.layers.heat, ox, oy, w, h);
    if (show.labels) {
      c.imageSmoothingEnabled = false; // a label voxel is a voxel
      if (show.fill) c.drawImage(this.layers.fill, ox, oy, w, h);
      if (show.outline) this.drawOutlines(c, this.slice, (id) => ({ color: `rgb(${(this.scene.colors.get(id) ?? [255, 255, 255]).join(",")})`, width: id === this.scene.activeId ? 2 : 1.1 }));
    }
    if (this.scene.compare) this.drawOutlines(c, this.other, () => ({ color: "#ffffff", width: 1.6, dash: [4, 3] }));
    if (this.scene.seeds.size) this.drawSeeds(c);
    this.drawTop();
  }

  /** One pass over the slice's voxels, row by row on the screen. */
  fillPixels() {
    const { scene, u, v, slice } = this;
    const { data, gray, heat, flags, flagBits } = scene;
    const { ct, heat: hot, fill } = this.pixels;
    const [du, dv] = [u.flip ? -u.stride : u.stride, v.flip ? -v.stride : v.stride];
    let start = this.corner();
    this.hasHeat = Boolean(scene.show.attention && heat && (!flagBits || flags));
    const paint = this.paintTable();
    const ids = scene.shownIds();
    const { labels, mask, activeId, compare } = scene;
    const withLabels = scene.show.labels && labels;
    for (let y = 0, p = 0; y < v.size; y++, start += dv) {
      for (let x = 0, voxel = start; x < u.size; x++, p++, voxel += du) {
        ct.words[p] = gray[data[voxel] + 32768];
        if (withLabels) {
          const id = ids[mask !== null && mask[voxel] ? activeId : labels[voxel] === activeId && mask !== null ? 0 : labels[voxel]];
          slice[p] = id;
          fill.words[p] = paint[id];
        }
      }
    }
    if (this.hasHeat) this.fillHeat(hot.words, du, dv);
    if (compare) this.fillOther(compare, du, dv);
    ct.context.putImageData(ct.image, 0, 0);
    if (this.hasHeat) hot.context.putImageData(hot.image, 0, 0);
    if (withLabels) fill.context.putImageData(fill.image, 0, 0);
  }

  /** First voxel of the slice on the screen: top left. */
  corner() {
    const { u, v, w, scene } = this;
    return scene.cursor[w.axis] * w.stride + (u.flip ? (u.size - 1) * u.stride : 0) + (v.flip ? (v.size - 1) * v.stride : 0);
  }

  fillHeat(words, du, dv) {
    const { u, v, scene } = this;
    const { heat, flags, flagBits } = scene;
    for (let y = 0, p = 0, start = this.corner(); y < v.size; y++, start += dv) {
      for (let x = 0, voxel = start; x < u.size; x++, p++, voxel += du) words[p] = !flagBits || flags[voxel] & flagBits ? THERMAL[heat[voxel]] : 0;
    }
  }

  fillOther(mask, du, dv) {
    const { u, v } = this;
    this.other ??= new Uint8Array(u.size * v.size);
    for (let y = 0, p = 0, start = this.corner(); y < v.size; y++, start += dv) {
      for (let x = 0, voxel = start; x < u.size; x++, p++, voxel += du) this.other[p] = mask[voxel];
    }
  }

  paintTable() {
    const table = new Uint32Array(256);
    for (const [id, color] of this.scene.colors) table[id] = word(color, this.scene.opacity * (id === this.scene.activeId ? 1.35 : 1));
    return table;
  }

  /** Voxel-exact outlines in screen resolution; runs of equal edges along a row become one line. */
  drawOutlines(c, slice, styleOf) {
    const { sx, sy, ox, oy } = this.place();
    const paths = new Map();
    const line = (id, x0, y0, x1, y1) => {
      if (!id) return;
      if (!paths.has(id)) paths.set(id, new Path2D());
      const path = paths.get(id);
      path.moveTo(ox + x0 * sx, oy + y0 * sy);
      path.lineTo(ox + x1 * sx, oy + y1 * sy);
    };
    const [nx, ny] = [this.u.size, this.v.size];
    for (let y = 0; y < ny; y++) {
      let [from, above, here] = [0, 0, 0]; // the horizontal edge being lengthened
      for (let x = 0; x <= nx; x++) {
        const b = x < nx ? slice[y * nx + x] : 0;
        const up = x < nx && y > 0 ? slice[(y - 1) * nx + x] : 0;
        if (b !== here || up !== above) {
          if (above !== here) { line(above, from, y, x, y); line(here, from, y, x, y); }
          [from, above, here] = [x, up, b];
        }
        const a = x > 0 ? slice[y * nx + x - 1] : 0;
        if (x < nx && a !== b) { line(a, x, y, x, y + 1); line(b, x, y, x, y + 1); }
      }
    }
    c.lineJoin = c.lineCap = "round";
    const ids = [...paths.keys()].sort((a, b) => (a === this.scene.activeId) - (b === this.scene.activeId));
    for (const id of ids) {
      const { color, width, dash = [] } = styleOf(id);
      Object.assign(c, { strokeStyle: color, lineWidth: width });
      c.setLineDash(dash);
      c.stroke(paths.get(id));
    }
    c.setLineDash([]);
  }

  drawSeeds(c) {
    const { scene, w } = this;
    const { sx, sy } = this.place();
    for (const [voxel, inside] of scene.seeds) {
      const position = scene.position(voxel);
      if (position[w.axis] !== scene.cursor[w.axis]) continue;
      const [x, y] = this.toScreen(position);
      c.fillStyle = inside ? "rgba(70,255,140,0.75)" : "rgba(255,80,120,0.75)";
      c.fillRect(x - sx / 2, y - sy / 2, sx, sy);
    }
  }

  drawTop() {
    if (!this.scene || !this.width) return;
    const c = this.top.getContext("2d");
    c.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    c.clearRect(0, 0, this.width, this.height);
    if (this.scene.box) this.drawBox(c);
    if (this.scene.lasso.length && this.drawing) this.drawLasso(c);
    if (this.scene.show.crosshair) this.drawCrosshair(c);
    this.drawLetters(c);
    this.drawScaleBar(c);
    if (this.name === "axial" && this.scene.show.attention && this.scene.heat) this.drawLegend(c);
    if (this.ring) this.drawRing(c);
  }

  drawBox(c) {
    const { box, cursor } = this.scene;
    const [start, stop] = box[this.w.axis];
    if (cursor[this.w.axis] < start || cursor[this.w.axis] >= stop) return;
    const [x0, y0] = this.toScreen(box.map(([from]) => from - 0.5));
    const [x1, y1] = this.toScreen(box.map(([, to]) => to - 0.5));
    c.setLineDash([5, 4]);
    c.strokeStyle = "rgba(255,255,255,0.85)";
    c.lineWidth = 1;
    c.strokeRect(Math.min(x0, x1) - 3, Math.min(y0, y1) - 3, Math.abs(x1 - x0) + 6, Math.abs(y1 - y0) + 6);
    c.setLineDash([]);
  }

  drawLasso(c) {
    c.beginPath();
    for (const corner of this.scene.lasso) c.lineTo(...this.toScreen(corner));
    c.closePath();
    Object.assign(c, { lineWidth: 1.5, strokeStyle: "#ffffff", fillStyle: "rgba(255,255,255,0.12)" });
    c.fill();
    c.stroke();
  }

  drawCrosshair(c) {
    const [x, y] = this.toScreen(this.scene.cursor);
    const gap = 14;
    c.strokeStyle = CROSS;
    c.lineWidth = 1;
    c.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, this.width, y], [x, 0, x, y - gap], [x, y + gap, x, this.height]]) {
      c.moveTo(Math.round(x0) + 0.5, Math.round(y0) + 0.5);
      c.lineTo(Math.round(x1) + 0.5, Math.round(y1) + 0.5);
    }
    c.stroke();
  }

  drawLetters(c) {
    const { right, down } = DIRECTIONS[this.name];
    const [w, h] = [this.width, this.height];
    const big = { font: "600 15px system-ui, sans-serif", color: "#ffd479" };
    write(c, OPPOSITE[right], 9, h / 2, { ...big, align: "left" });
    write(c, right, w - 9, h / 2, { ...big, align: "right" });
    write(c, OPPOSITE[down], w / 2, 14, { ...big, align: "center" });
    write(c, down, w / 2, h - 14, { ...big, align: "center" });
    const slice = this.scene.cursor[this.w.axis] + 1;
    write(c, `${this.name[0].toUpperCase()}${this.name.slice(1)}  ${slice} / ${this.w.size}`, 9, 14);
    const { width, level } = this.scene.window;
    if (this.name === "axial") write(c, `W ${width}  L ${level}`, w - 9, 14, { align: "right" });
  }

  drawScaleBar(c) {
    const k = this.scale;
    const mm = [200, 100, 50, 20, 10, 5, 2, 1].find((length) => length * k <= this.width / 4) ?? 1;
    const [x, y] = [10, this.height - 12];
    for (const [color, width] of [["rgba(0,0,0,0.8)", 4], [INK, 1.6]]) {
      c.strokeStyle = color;
      c.lineWidth = width;
      c.beginPath();
      c.moveTo(x, y - 4);
      c.lineTo(x, y);
      c.lineTo(x + mm * k, y);
      c.lineTo(x + mm * k, y - 4);
      c.stroke();
    }
    write(c, `${mm} mm`, x + 5, y - 10);
  }

  drawLegend(c) {
    const [w, h, x, y] = [90, 7, this.width - 100, this.height - 18];
    c.fillStyle = "#000";
    c.fillRect(x, y, w, h);
    for (let i = 0; i < w; i++) {
      c.fillStyle = css(THERMAL[1 + Math.round((i / (w - 1)) * 254)]);
      c.fillRect(x + i, y, 1, h);
    }
    c.strokeStyle = FAINT;
    c.lineWidth = 0.5;
    c.strokeRect(x, y, w, h);
    write(c, "attention", x, y - 8);
  }

  drawRing(c) {
    const { x, y, radius, erase } = this.ring;
    c.beginPath();
    c.arc(x, y, Math.max(2, radius * this.scale), 0, 2 * Math.PI);
    c.lineWidth = 2.5;
    c.strokeStyle = "rgba(0,0,0,0.6)";
    c.stroke();
    c.lineWidth = 1.2;
    c.strokeStyle = erase ? "#ff8f8f" : "#ffffff";
    c.stroke();
  }
}
