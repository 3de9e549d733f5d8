// Regions: which voxels a fill, a lasso, a component or another slice means. Pure functions of arrays. No DOM.

import { Numbers, encodeRuns, inverseRuns } from "./runs.js";

export const FILL_LIMIT = 4_000_000; // voxels; a leak into the background stops here

/**
 * Voxels connected to `seed` (by faces, or also by edges and corners) where `inside(voxel)` holds.
 *
 * @param {object} grid dims in voxels
 * @param {object} how flat: file axis across which nothing spreads, null in 3D; box: [start, stop] per axis; corners: 26 neighbors
 * @returns {{voxels: Uint32Array, complete: boolean}} complete is false where the limit stopped it
 */
export function flood({ dims }, seed, inside, { flat = null, box = null, corners = false, limit = FILL_LIMIT } = {}) {
  const [nx, ny, nz] = dims;
  const range = (box ?? dims.map((n) => [0, n])).map(([start, stop], a) => (a === flat ? [seed[a], seed[a] + 1] : [Math.max(0, start), Math.min(dims[a], stop)]));
  const found = new Numbers();
  const first = seed[0] + nx * (seed[1] + ny * seed[2]);
  const seen = new Uint8Array(Math.ceil((nx * ny * nz) / 8));
  const steps = neighbors(corners).filter((step) => flat === null || step[flat] === 0);
  const visit = (voxel) => {
    seen[voxel >> 3] |= 1 << (voxel & 7);
    found.push(voxel);
  };
  if (!inside(first) || range.some(([start, stop], a) => seed[a] < start || seed[a] >= stop)) return { voxels: found.toArray(), complete: true };
  visit(first);
  let queue = [first];
  while (queue.length) {
    const next = [];
    for (const voxel of queue) {
      const x = voxel % nx;
      const y = Math.floor(voxel / nx) % ny;
      const z = Math.floor(voxel / (nx * ny));
      for (const [dx, dy, dz] of steps) {
        const [a, b, c] = [x + dx, y + dy, z + dz];
        if (a < range[0][0] || a >= range[0][1] || b < range[1][0] || b >= range[1][1] || c < range[2][0] || c >= range[2][1]) continue;
        const other = a + nx * (b + ny * c);
        if (seen[other >> 3] & (1 << (other & 7)) || !inside(other)) continue;
        if (found.length >= limit) return { voxels: found.toArray(), complete: false };
        visit(other);
        next.push(other);
      }
    }
    queue = next;
  }
  return { voxels: found.toArray(), complete: true };
}

function neighbors(corners) {
  const all = [];
  for (let dz = -1; dz <= 1; dz++) for (let dy = -1; dy <= 1; dy++) for (let dx = -1; dx <= 1; dx++) all.push([dx, dy, dz]);
  return all.filter(([dx, dy, dz]) => (corners ? dx || dy || dz : Math.abs(dx) + Math.abs(dy) + Math.abs(dz) === 1));
}

/** The voxels of an attention component. */
export function componentVoxels({ dims }, flags, { peak, box }) {
  return flood({ dims }, peak, (voxel) => flags[voxel] > 0, { box, corners: true }).voxels;
}

/** The voxels with a rim of one voxel around them: opening has taken that rim off an attention component. */
export function withRim({ dims }, voxels) {
  const [nx, ny, nz] = dims;
  const rim = new Set(voxels);
  for (const voxel of voxels) {
    const x = voxel % nx;
    const y = Math.floor(voxel / nx) % ny;
    const z = Math.floor(voxel / (nx * ny));
    if (x > 0) rim.add(voxel - 1);
    if (x < nx - 1) rim.add(voxel + 1);
    if (y > 0) rim.add(voxel - nx);
    if (y < ny - 1) rim.add(voxel + nx);
    if (z > 0) rim.add(voxel - nx * ny);
    if (z < nz - 1) rim.add(voxel + nx * ny);
  }
  return rim;
}

/**
 * Voxels whose centers lie inside a polygon drawn on one slice (even-odd rule).
 *
 * @param {number[][]} corners voxel coordinates; `across` is the file axis the slice is perpendicular to
 */
export function polygonVoxels({ dims }, corners, across) {
  const [u, v] = [0, 1, 2].filter((a) => a !== across);
  const slice = Math.round(corners[0][across]);
  const strides = [1, dims[0], dims[0] * dims[1]];
  const voxels = new Numbers();
  const low = Math.max(0, Math.ceil(Math.min(...corners.map((p) => p[v]))));
  const high = Math.min(dims[v] - 1, Math.floor(Math.max(...corners.map((p) => p[v]))));
  for (let row = low; row <= high; row++) {
    const cuts = [];
    corners.forEach((p, n) => {
      const q = corners[(n + 1) % corners.length];
      if (p[v] <= row !== q[v] <= row) cuts.push(p[u] + ((row - p[v]) / (q[v] - p[v])) * (q[u] - p[u]));
    });
    cuts.sort((a, b) => a - b);
    for (let n = 0; n + 1 < cuts.length; n += 2) {
      const stop = Math.min(dims[u], cuts[n + 1]); // half-open, so that a line encloses nothing
      for (let at = Math.max(0, Math.ceil(cuts[n])); at < stop; at++) voxels.push(at * strides[u] + row * strides[v] + slice * strides[across]);
    }
  }
  return voxels.toArray().sort();
}

/** Runs that make the slice `to` of a mask equal to its slice `from`. */
export function copySliceRuns({ dims }, mask, across, from, to) {
  const [u, v] = [0, 1, 2].filter((a) => a !== across);
  const strides = [1, dims[0], dims[0] * dims[1]];
  const runs = new Numbers();
  for (let row = 0; row < dims[v]; row++) {
    for (let at = 0; at < dims[u]; at++) {
      const base = at * strides[u] + row * strides[v];
      const [source, target] = [base + from * strides[across], base + to * strides[across]];
      if (mask[source] !== mask[target]) runs.push(target, 1, mask[source]);
    }
  }
  return runs.toArray();
}

/** A box around voxels with a margin in mm, inside the volume; the margin gives way where the box would get too large to solve. */
export function seedBox({ dims, spacing }, voxels, { margin = 15, most = 300_000 } = {}) {
  const low = [...dims];
  const high = [-1, -1, -1];
  for (const voxel of voxels) {
    [voxel % dims[0], Math.floor(voxel / dims[0]) % dims[1], Math.floor(voxel / (dims[0] * dims[1]))].forEach((at, a) => {
      low[a] = Math.min(low[a], at);
      high[a] = Math.max(high[a], at);
    });
  }
  for (let mm = margin; ; mm -= 1) {
    const reach = spacing.map((s) => Math.max(1, Math.ceil(mm / s)));
    const box = dims.map((n, a) => [Math.max(0, low[a] - reach[a]), Math.min(n, high[a] + reach[a] + 1)]);
    if (mm <= 1 || box.reduce((size, [start, stop]) => size * (stop - start), 1) <= most) return box;
  }
}

/** The outermost voxels of a box. */
export function boxFaces({ dims }, [[x0, x1], [y0, y1], [z0, z1]]) {
  const faces = [];
  for (let z = z0; z < z1; z++) {
    for (let y = y0; y < y1; y++) {
      const isFace = z === z0 || z === z1 - 1 || y === y0 || y === y1 - 1;
      for (let x = x0; x < x1; x += isFace ? 1 : Math.max(1, x1 - 1 - x0)) faces.push(x + dims[0] * (y + dims[1] * z));
    }
  }
  return faces;
}

/**
 * What taking an organ from another label map would change, and how alike the two are.
 *
 * @param {Uint8Array} mask the organ as it stands
 * @param {Packed} labels another label map
 * @returns {{runs: Uint32Array, voxels: number, dice: number}} dice is 1 where both are empty
 */
export function difference(mask, labels, labelId) {
  const runs = new Numbers();
  const changed = [0, 0]; // voxels to remove, to add
  let other = 0;
  const next = [-1, -1]; // where a 0, a 1 comes next; indexOf is several times faster than a loop
  const seek = (value, from) => {
    if (next[value] < from) next[value] = (mask.indexOf(value, from) + mask.length + 1) % (mask.length + 1);
    return next[value];
  };
  labels.each((value, start, stop) => {
    const wanted = value === labelId ? 1 : 0;
    if (wanted) other += stop - start;
    for (let from = seek(1 - wanted, start), to; from < stop; from = seek(1 - wanted, to)) {
      to = Math.min(stop, seek(wanted, from));
      runs.push(from, to - from, wanted);
      changed[wanted] += to - from;
    }
  });
  const own = other + changed[0] - changed[1];
  return { runs: runs.toArray(), voxels: changed[0] + changed[1], dice: own + other ? (2 * (own - changed[0])) / (own + other) : 1 };
}

/** The runs by which taking an organ from another label map would change the voxels of a region. */
export function differenceWithin(mask, labels, labelId, region) {
  const changed = new Numbers();
  const { starts, values } = labels;
  let stretch = 0;
  for (const voxel of Uint32Array.from(region).sort()) {
    while (starts[stretch + 1] <= voxel) stretch += 1;
    if (mask[voxel] !== (values[stretch] === labelId ? 1 : 0)) changed.push(voxel);
  }
  return inverseRuns(encodeRuns(changed.toArray(), mask));
}
