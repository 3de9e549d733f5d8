// The edit core: one organ's own binary mask, its strokes, and its undo and redo. No DOM, no network.
//
// Every operation gives a step {name, kind: "edit" | "undo" | "redo", runs}: what the server has to be told, so that its history
// and this one are the same list and undo outlives a reload.

import { Numbers, applyRuns, encodeRuns, eachVoxel, inverseRuns } from "./runs.js";

export const UNDO_DEPTH = 200;

/** The undo and redo stacks that a list of steps leaves, oldest first. Someone's revert is an edit like any other. */
export function rebuildStacks(steps) {
  const [past, future] = [[], []];
  for (const { name, kind, runs } of steps) {
    if (kind === "undo") future.push(past.pop() ?? { name, runs: inverseRuns(runs) });
    else if (kind === "redo") past.push(future.pop() ?? { name, runs });
    else {
      past.push({ name, runs });
      future.length = 0;
    }
  }
  return { past: past.slice(-UNDO_DEPTH), future: future.slice(-UNDO_DEPTH) };
}

export class OrganEdit {
  /**
   * @param {{mask: Uint8Array, dims: number[], spacing: number[], steps: object[]}} grid mask in file order, 0 or 1, edited in
   *   place; dims in voxels and spacing in mm per file axis; the steps that made the mask, oldest first.
   */
  constructor({ mask, dims, spacing, steps = [] }) {
    Object.assign(this, { mask, dims, spacing, stroke: null, ...rebuildStacks(steps) });
  }

  // --- strokes ---

  /** Start a named step; everything painted until `end` is undone at once. */
  begin(name) {
    this.stroke = { name, voxels: new Numbers() };
  }

  /** What the open stroke has changed so far, as a step. */
  soFar() {
    const { name, voxels } = this.stroke;
    return { name, kind: "edit", runs: encodeRuns(voxels.toArray().sort(), this.mask) };
  }

  /** Close the step. Returns it, or null where nothing changed. */
  end() {
    if (!this.stroke) return null;
    const step = this.soFar();
    this.stroke = null;
    return step.runs.length ? this.#push(step) : null;
  }

  #push({ name, kind, runs }) {
    this.past.push({ name, runs });
    if (this.past.length > UNDO_DEPTH) this.past.shift();
    this.future = [];
    return { name, kind, runs };
  }

  /**
   * Set every voxel whose center lies within `radius` mm of the segment from-to. Returns how many changed.
   *
   * @param {number[]} from, to voxel coordinates (file axes, fractions allowed)
   * @param {object} how
   *   radius in mm;
   *   value 1 paints, 0 erases;
   *   across the file axis perpendicular to the plane painted in;
   *   sphere true reaches into neighbor slices, false stays in the slice of `from`;
   *   blocked (voxel) => true where nothing may change (another organ, outside the HU gate)
   */
  paint(from, to, { value, blocked = null, ...how }) {
    const before = this.stroke.voxels.length;
    eachWithin(this, from, to, how, (voxel) => {
      if (this.mask[voxel] === value || blocked?.(voxel)) return;
      this.mask[voxel] = value;
      this.stroke.voxels.push(voxel);
    });
    return this.stroke.voxels.length - before;
  }

  /** Give voxels one value (a lasso, a fill) as one step. Returns the step or null. */
  set(name, voxels, value, blocked = null) {
    this.begin(name);
    for (const voxel of voxels) {
      if (this.mask[voxel] === value || blocked?.(voxel)) continue;
      this.mask[voxel] = value;
      this.stroke.voxels.push(voxel);
    }
    return this.end();
  }

  /** Write runs (a proposal, a part of another mask) as one step. Returns the step or null. */
  write(name, runs, blocked = null) {
    this.begin(name);
    eachVoxel(runs, (voxel, value) => {
      if (this.mask[voxel] === value || blocked?.(voxel, value)) return;
      this.mask[voxel] = value;
      this.stroke.voxels.push(voxel);
    });
    return this.end();
  }

  // --- undo ---

  /** Take the last step back. Returns the step that says so, or null at the beginning. */
  undo() {
    if (this.stroke || !this.past.length) return null;
    const { name, runs } = this.past.pop();
    this.future.push({ name, runs });
    const back = inverseRuns(runs);
    applyRuns(this.mask, back);
    return { name, kind: "undo", runs: back };
  }

  /** Do the last undone step again. Returns the step that says so, or null at the end. */
  redo() {
    if (this.stroke || !this.future.length) return null;
    const { name, runs } = this.future.pop();
    this.past.push({ name, runs });
    applyRuns(this.mask, runs);
    return { name, kind: "redo", runs };
  }

  // --- other people's steps ---

  /** Replace the newest `own` steps by `theirs` and put `own` back on top; only where the two share no voxel. */
  slipUnder(own, theirs, steps) {
    this.stroke = null;
    for (const { runs } of [...own].reverse()) applyRuns(this.mask, inverseRuns(runs));
    for (const { runs } of [...theirs, ...own]) applyRuns(this.mask, runs);
    Object.assign(this, rebuildStacks(steps));
  }
}

/** Calls `visit(voxel)` for every voxel whose center lies within `radius` mm of a segment; see `OrganEdit.paint`. */
export function eachWithin({ dims, spacing }, from, to, { radius, across, sphere = false }, visit) {
  // A radius below half a voxel would leave gaps between the voxels a fast stroke passes.
  const reach = Math.max(radius, ...[0, 1, 2].filter((a) => a !== across).map((a) => spacing[a] / 2));
  const [low, high] = bounds({ dims, spacing }, from, to, reach, across, sphere);
  const capsule = distanceToSegment(from, to, spacing, sphere ? -1 : across);
  for (let z = low[2]; z <= high[2]; z++) {
    for (let y = low[1]; y <= high[1]; y++) {
      const row = dims[0] * (y + dims[1] * z);
      for (let x = low[0]; x <= high[0]; x++) if (capsule(x, y, z) <= reach * reach + 1e-6) visit(row + x);
    }
  }
}

function bounds({ dims, spacing }, from, to, reach, across, sphere) {
  const low = [0, 0, 0];
  const high = [0, 0, 0];
  for (let a = 0; a < 3; a++) {
    const flat = a === across && !sphere;
    const margin = reach / spacing[a];
    low[a] = Math.max(0, flat ? Math.round(from[a]) : Math.ceil(Math.min(from[a], to[a]) - margin - 1e-9));
    high[a] = Math.min(dims[a] - 1, flat ? Math.round(from[a]) : Math.floor(Math.max(from[a], to[a]) + margin + 1e-9));
  }
  return [low, high];
}

/** (x, y, z) -> squared distance in mm to the segment; `ignored` is an axis that does not count (a flat brush). */
function distanceToSegment(from, to, spacing, ignored) {
  const weight = spacing.map((s, a) => (a === ignored ? 0 : s));
  const d = [0, 1, 2].map((a) => (to[a] - from[a]) * weight[a]);
  const length2 = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
  return (x, y, z) => {
    const px = (x - from[0]) * weight[0];
    const py = (y - from[1]) * weight[1];
    const pz = (z - from[2]) * weight[2];
    const t = length2 ? Math.min(1, Math.max(0, (px * d[0] + py * d[1] + pz * d[2]) / length2)) : 0;
    const ex = px - t * d[0];
    const ey = py - t * d[1];
    const ez = pz - t * d[2];
    return ex * ex + ey * ey + ez * ez;
  };
}

/** Which label ids may not be painted over: every one but the organ's own and those it may share voxels with. */
export function protectedIds(organ, organs) {
  const table = new Uint8Array(256).fill(1);
  table[0] = 0;
  table[organ.label_id] = 0;
  for (const other of organs) if (organ.may_touch.includes(other.name)) table[other.label_id] = 0;
  return table;
}

/** Put an organ's edited mask back into the label map it is shown over, before another organ is taken up. */
export function bake(labels, mask, labelId) {
  for (let voxel = 0; voxel < labels.length; voxel++) {
    if (labels[voxel] === labelId) {
      if (!mask[voxel]) labels[voxel] = 0;
    } else if (mask[voxel] && labels[voxel] === 0) labels[voxel] = labelId;
  }
}
