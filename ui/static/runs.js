// Runs: a set of changed voxels as [start, length, value, ...] in file voxel order (x fastest). No DOM, no network.
//
// Runs of a step hold only voxels that really changed, so a step is undone by writing the opposite values.

/** Ascending `voxels` as runs, with the values they have in `mask`. */
export function encodeRuns(voxels, mask) {
  const runs = new Numbers();
  let [start, length, value] = [0, 0, 0];
  for (const voxel of voxels) {
    if (length && start + length === voxel && mask[voxel] === value) length += 1;
    else {
      if (length) runs.push(start, length, value);
      [start, length, value] = [voxel, 1, mask[voxel]];
    }
  }
  if (length) runs.push(start, length, value);
  return runs.toArray();
}

/** Write the runs into a mask. */
export function applyRuns(mask, runs) {
  for (let r = 0; r < runs.length; r += 3) mask.fill(runs[r + 2], runs[r], runs[r] + runs[r + 1]);
}

/** The runs that take these back. */
export function inverseRuns(runs) {
  const inverse = runs.slice();
  for (let r = 2; r < inverse.length; r += 3) inverse[r] = 1 - inverse[r];
  return inverse;
}

export function countVoxels(runs) {
  let voxels = 0;
  for (let r = 1; r < runs.length; r += 3) voxels += runs[r];
  return voxels;
}

/** Calls `visit(voxel, value)` for every voxel. */
export function eachVoxel(runs, visit) {
  for (let r = 0; r < runs.length; r += 3) for (let voxel = runs[r]; voxel < runs[r] + runs[r + 1]; voxel++) visit(voxel, runs[r + 2]);
}

export function sameRuns(a, b) {
  return a.length === b.length && a.every((value, n) => value === b[n]);
}

/** How many voxels two sets of runs have in common; runs of each set ascend and do not overlap. */
export function sharedVoxels(a, b) {
  let shared = 0;
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    const [aEnd, bEnd] = [a[i] + a[i + 1], b[j] + b[j + 1]];
    shared += Math.max(0, Math.min(aEnd, bEnd) - Math.max(a[i], b[j]));
    if (aEnd <= bEnd) i += 3;
    else j += 3;
  }
  return shared;
}

/** A whole mask or label map, compact: a megabyte where the voxels take seventy. */
export class Packed {
  constructor(voxels) {
    const starts = new Numbers();
    const values = new Numbers();
    // Most voxels are like the one before, so four are looked at together where they make up a word.
    const words = voxels.byteOffset % 4 ? [] : new Uint32Array(voxels.buffer, voxels.byteOffset, voxels.length >> 2);
    let [last, fourTimes] = [-1, -1];
    for (let voxel = 0; voxel < voxels.length; voxel++) {
      while (voxel % 4 === 0 && words[voxel / 4] === fourTimes) voxel += 4;
      if (voxel >= voxels.length || voxels[voxel] === last) continue;
      last = voxels[voxel];
      fourTimes = (last * 0x01010101) >>> 0;
      starts.push(voxel);
      values.push(last);
    }
    Object.assign(this, { size: voxels.length, starts: starts.toArray(), values: Uint8Array.from(values.toArray()) });
  }

  unpack() {
    const voxels = new Uint8Array(this.size);
    this.each((value, start, stop) => value && voxels.fill(value, start, stop));
    return voxels;
  }

  /** Calls `visit(value, start, stop)` for every stretch of equal voxels. */
  each(visit) {
    const { starts, values, size } = this;
    for (let n = 0; n < starts.length; n++) visit(values[n], starts[n], n + 1 < starts.length ? starts[n + 1] : size);
  }
}

/** Grows by doubling; pushing to a plain array of a million numbers is several times slower. */
export class Numbers {
  #numbers = new Uint32Array(1024);
  length = 0;

  push(...values) {
    if (this.length + values.length > this.#numbers.length) {
      const grown = new Uint32Array(this.#numbers.length * 2);
      grown.set(this.#numbers);
      this.#numbers = grown;
    }
    for (const value of values) this.#numbers[this.length++] = value;
  }

  toArray() {
    return this.#numbers.slice(0, this.length);
  }
}

// --- on the wire: base64 of gzipped little-endian uint32 ---

export async function packRuns(runs) {
  const packed = new Blob([runs]).stream().pipeThrough(new CompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(packed).arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}

export async function unpackRuns(text) {
  return inflateRuns(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
}

/** Compressed bytes, gzip or zlib. */
export async function inflateRuns(bytes) {
  if (!bytes.length) return new Uint32Array(0);
  const format = bytes[0] === 0x1f ? "gzip" : "deflate";
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream(format));
  return new Uint32Array(await new Response(plain).arrayBuffer());
}
