// "Take it from": one network's answer in place of the mask, for the whole organ or inside the current attention component. No DOM.

import { parseNifti } from "./nifti.js";
import { componentVoxels, difference, differenceWithin, withRim } from "./region.js";
import { Packed, countVoxels } from "./runs.js";

export class Takeover {
  constructor(client, caseId, architectures) {
    Object.assign(this, { client, caseId, architectures, labels: new Map(), cycle: null });
  }

  /** One architecture's label map, fetched once and kept packed. */
  async labelMap(name) {
    if (!this.labels.has(name)) this.labels.set(name, this.#fetch(name));
    try {
      return await this.labels.get(name);
    } catch (error) {
      this.labels.delete(name);
      throw error;
    }
  }

  /** Fetch what is not there yet, one after the other. */
  async fetchAhead() {
    for (const name of this.architectures) await this.labelMap(name);
  }

  async #fetch(name) {
    const file = await this.client.bytes("cases", this.caseId, "architectures", name);
    if (!file) throw new Error(`${name} left no label map for this case`);
    return new Packed(parseNifti(file.buffer).data);
  }

  /** The networks that know an organ. Another one's label map has no voxel of it, which would be taken for "nowhere". */
  knowing(organ) {
    return this.architectures.filter((name) => !organ.unknown_to.includes(name));
  }

  /** [{name, dice, voxels, inside}] of an organ against every network that knows it; `inside` counts the region's voxels only. */
  async compare(mask, organ, region) {
    return Promise.all(this.knowing(organ).map(async (name) => {
      const labels = await this.labelMap(name);
      const { dice, voxels } = difference(mask, labels, organ.label_id);
      return { name, dice, voxels, inside: region ? countVoxels(differenceWithin(mask, labels, organ.label_id, region)) : 0 };
    }));
  }

  /**
   * The next network in turn for one place. The same key again at the same place means: not this one, the next.
   *
   * @param {object} organ only networks that know it have a turn
   * @param {string} place what is being taken, such as "organ" or "component 3"
   * @param {object|null} last the newest step of the organ; anything done since the last taking starts again with the first
   * @returns {{name: string|null, again: boolean}} name null: all were tried, back to the own mask; again: take the last one back first
   */
  turn(organ, place, last) {
    const names = this.knowing(organ);
    const again = this.cycle !== null && this.cycle.place === place && this.cycle.step !== null && this.cycle.step === last;
    const n = this.cycle !== null && this.cycle.place === place && (again || this.cycle.step === null) ? this.cycle.n + 1 : 0;
    this.cycle = { place, n: n % (names.length + 1), step: null };
    return { name: names[this.cycle.n] ?? null, again };
  }

  /** The step that `turn`'s architecture led to (null where it changed nothing). */
  took(step) {
    if (this.cycle) this.cycle.step = step;
  }
}

/** The voxels a component's error may lie in: its own and a rim of one; its box where its voxels are not stored. */
export function componentRegion(grid, flags, component) {
  if (flags && flags[component.peak[0] + grid.dims[0] * (component.peak[1] + grid.dims[1] * component.peak[2])]) {
    return withRim(grid, componentVoxels(grid, flags, component));
  }
  const region = new Set();
  const [[x0, x1], [y0, y1], [z0, z1]] = component.box;
  for (let z = z0; z < z1; z++) for (let y = y0; y < y1; y++) for (let x = x0; x < x1; x++) region.add(x + grid.dims[0] * (y + grid.dims[1] * z));
  return region;
}
