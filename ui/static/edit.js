// The edit core: one organ's own binary mask, strokes, undo/redo and what still has to be saved. No DOM, no network.
//
// A mask voxel is 0 or 1, so every change is a flip. That makes undo, redo, and "differs from the server" the same operation:
// a step is the set of voxels it flipped, and a voxel is unsaved when it was flipped an odd number of times since the last save.

export const UNDO_DEPTH = 200;

/** A set of voxels as [start, length, value, ...] runs of file voxel order (x fastest). `voxels` is ascending. */
export function encodeRuns(voxels, mask) {
  const runs = [];
  for (const voxel of voxels) {
    const last = runs.length - 3;
    if (last >= 0 && runs[last] + runs[last + 1] === voxel && runs[last + 2] === mask[voxel]) runs[last + 1] += 1;
    else runs.push(voxel, 1, mask[voxel]);
  }
  return Uint32Array.from(runs);
}

/** Grows by doubling; pushing to a plain array of a million numbers is several times slower. */
class VoxelList {
  #voxels = new Uint32Array(1024);
  length = 0;

  push(voxel) {
    if (this.length === this.#voxels.length) {
      const grown = new Uint32Array(this.length * 2);
      grown.set(this.#voxels);
      this.#voxels = grown;
    }
    this.#voxels[this.length++] = voxel;
  }

  toArray() {
    return this.#voxels.slice(0, this.length);
  }
}

export class OrganEdit {
  /**
   * @param {{mask: Uint8Array, dims: number[], spacing: number[]}} grid mask in file order, 0 or 1, edited in place;
   *   dims in voxels and spacing in mm per file axis.
   */
  constructor({ mask, dims, spacing }) {
    Object.assign(this, { mask, dims, spacing });
    this.past = [];
    this.future = [];
    this.unsaved = new Set();
    this.inFlight = null;
    this.stroke = null;
  }

  get dirty() {
    return this.unsaved.size > 0;
  }

  /** Take up the same organ again with a mask freshly read from the server; the undo history stays. */
  attach(mask) {
    this.mask = mask;
  }

  // --- strokes ---

  /** Start a named step; everything painted until `end` is undone at once. */
  begin(name) {
    this.stroke = { name, voxels: new VoxelList() };
  }

  /** Close the step. Returns it, or null where nothing changed. */
  end() {
    const { name, voxels } = this.stroke ?? { voxels: new VoxelList() };
    this.stroke = null;
    if (!voxels.length) return null;
    const step = { name, voxels: voxels.toArray() };
    this.past.push(step);
    if (this.past.length > UNDO_DEPTH) this.past.shift();
    this.future = [];
    return step;
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
   *   blocked (voxel) => true where painting is not allowed (another organ, outside the HU gate)
   */
  paint(from, to, { radius, value, across, sphere = false, blocked = null }) {
    const { dims, spacing, mask } = this;
    // A radius below half a voxel would leave gaps between the voxels a fast stroke passes.
    const reach = Math.max(radius, ...[0, 1, 2].filter((a) => a !== across).map((a) => spacing[a] / 2));
    const [low, high] = this.#bounds(from, to, reach, across, sphere);
    const capsule = distanceToSegment(from, to, spacing, sphere ? -1 : across);
    let changed = 0;
    for (let z = low[2]; z <= high[2]; z++) {
      for (let y = low[1]; y <= high[1]; y++) {
        const row = dims[0] * (y + dims[1] * z);
        for (let x = low[0]; x <= high[0]; x++) {
          const voxel = row + x;
          if (mask[voxel] === value || capsule(x, y, z) > reach * reach + 1e-6) continue;
          if (value && blocked && blocked(voxel)) continue;
          this.#flip(voxel);
          this.stroke.voxels.push(voxel);
          changed += 1;
        }
      }
    }
    return changed;
  }

  #bounds(from, to, reach, across, sphere) {
    const low = [0, 0, 0];
    const high = [0, 0, 0];
    for (let a = 0; a < 3; a++) {
      const margin = a === across && !sphere ? 0 : reach / this.spacing[a];
      const near = Math.min(from[a], to[a]) - margin;
      const far = Math.max(from[a], to[a]) + margin;
      low[a] = Math.max(0, a === across && !sphere ? Math.round(from[a]) : Math.ceil(near - 1e-9));
      high[a] = Math.min(this.dims[a] - 1, a === across && !sphere ? Math.round(from[a]) : Math.floor(far + 1e-9));
    }
    return [low, high];
  }

  /** Set given voxels as one step (a replayed edit, a mask taken from elsewhere). Returns the step or null. */
  assign(name, voxels, values) {
    this.begin(name);
    voxels.forEach((voxel, n) => {
      if (this.mask[voxel] === values[n]) return;
      this.#flip(voxel);
      this.stroke.voxels.push(voxel);
    });
    return this.end();
  }

  // --- undo ---

  /** Take the last step back. Returns it, or null at the beginning. */
  undo() {
    return this.#move(this.past, this.future);
  }

  /** Do the last undone step again. Returns it, or null at the end. */
  redo() {
    return this.#move(this.future, this.past);
  }

  #move(from, to) {
    if (this.stroke || !from.length) return null;
    const step = from.pop();
    for (const voxel of step.voxels) this.#flip(voxel);
    to.push(step);
    return step;
  }

  #flip(voxel) {
    this.mask[voxel] ^= 1;
    if (!this.unsaved.delete(voxel)) this.unsaved.add(voxel);
  }

  // --- saving ---

  /** What the server does not have yet, as runs; null where there is nothing. Edits go on while it is on its way. */
  takeRuns() {
    if (this.inFlight) throw new Error("a save is already on its way");
    if (!this.unsaved.size) return null;
    this.inFlight = this.unsaved;
    this.unsaved = new Set();
    return encodeRuns(Uint32Array.from(this.inFlight).sort(), this.mask);
  }

  /** The server has stored what was taken. */
  confirm() {
    this.inFlight = null;
  }

  /** The server has not stored it: it counts as unsaved again (flipped twice = back to what the server has). */
  putBack() {
    for (const voxel of this.inFlight ?? []) if (!this.unsaved.delete(voxel)) this.unsaved.add(voxel);
    this.inFlight = null;
  }

  /**
   * The server's mask is another than assumed (someone else saved): start from it and set the own unsaved voxels on top, as
   * one step. Earlier undo steps flipped voxels of a mask that no longer exists, so they go.
   */
  rebase(mask) {
    this.putBack();
    const voxels = Uint32Array.from(this.unsaved).sort();
    const values = voxels.map((voxel) => this.mask[voxel]);
    Object.assign(this, { mask, past: [], future: [], unsaved: new Set(), stroke: null });
    return this.assign("own edits on the newer label", voxels, values);
  }
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
