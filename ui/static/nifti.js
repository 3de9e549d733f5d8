// NIfTI-1/-2 as bytes -> voxels and geometry. Nothing is resampled or reordered: an index of `data` is an index of the file.
// Little-endian int8/uint8/int16/uint16 only: that is what the server sends.

const TYPES = { 2: Uint8Array, 4: Int16Array, 256: Int8Array, 512: Uint16Array };

/** Read a single-file NIfTI. Returns {dims, spacing, affine, data}; affine is 3 rows of 4, voxel index -> RAS mm. */
export function parseNifti(buffer) {
  const view = new DataView(buffer);
  const size = view.getInt32(0, true);
  if (size !== 348 && size !== 540) throw new Error(`not a little-endian NIfTI file (header size ${size})`);
  const field = size === 348 ? nifti1(view) : nifti2(view);
  const Type = TYPES[field.datatype];
  if (!Type) throw new Error(`NIfTI datatype ${field.datatype} is not shown here; the server sends int16 and uint8`);
  const count = field.dims[0] * field.dims[1] * field.dims[2];
  const bytes = count * Type.BYTES_PER_ELEMENT;
  if (buffer.byteLength < field.offset + bytes) throw new Error(`NIfTI file is truncated: ${buffer.byteLength} bytes`);
  const aligned = field.offset % Type.BYTES_PER_ELEMENT === 0;
  const data = aligned ? new Type(buffer, field.offset, count) : new Type(buffer.slice(field.offset, field.offset + bytes));
  const affine = field.sform > 0 ? field.rows : quaternionAffine(field);
  return { dims: field.dims, spacing: columnNorms(affine), affine, data };
}

function nifti1(view) {
  const f = (at) => view.getFloat32(at, true);
  return {
    dims: [42, 44, 46].map((at) => Math.max(1, view.getInt16(at, true))),
    datatype: view.getInt16(70, true),
    offset: Math.round(f(108)),
    pixdim: [76, 80, 84, 88].map(f),
    sform: view.getInt16(254, true),
    quaternion: [256, 260, 264].map(f),
    origin: [268, 272, 276].map(f),
    rows: [280, 296, 312].map((at) => [0, 4, 8, 12].map((d) => f(at + d))),
  };
}

function nifti2(view) {
  const f = (at) => view.getFloat64(at, true);
  const n = (at) => Number(view.getBigInt64(at, true));
  return {
    dims: [24, 32, 40].map((at) => Math.max(1, n(at))),
    datatype: view.getInt16(12, true),
    offset: n(168),
    pixdim: [104, 112, 120, 128].map(f),
    sform: view.getInt32(348, true),
    quaternion: [352, 360, 368].map(f),
    origin: [376, 384, 392].map(f),
    rows: [400, 432, 464].map((at) => [0, 8, 16, 24].map((d) => f(at + d))),
  };
}

/** The qform's affine (nifti1.h, method 2). */
function quaternionAffine({ quaternion: [b, c, d], pixdim, origin }) {
  const a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d));
  const qfac = pixdim[0] < 0 ? -1 : 1;
  const [dx, dy, dz] = [pixdim[1], pixdim[2], pixdim[3] * qfac];
  return [
    [(a * a + b * b - c * c - d * d) * dx, 2 * (b * c - a * d) * dy, 2 * (b * d + a * c) * dz, origin[0]],
    [2 * (b * c + a * d) * dx, (a * a + c * c - b * b - d * d) * dy, 2 * (c * d - a * b) * dz, origin[1]],
    [2 * (b * d - a * c) * dx, 2 * (c * d + a * b) * dy, (a * a + d * d - b * b - c * c) * dz, origin[2]],
  ];
}

function columnNorms(affine) {
  return [0, 1, 2].map((c) => Math.hypot(affine[0][c], affine[1][c], affine[2][c]));
}

/**
 * Which file axis runs along R-L, A-P and S-I, and whether it grows toward R, A, S (+1) or L, P, I (-1).
 * An oblique file is shown along its nearest anatomical axes.
 */
export function orientation({ affine, spacing }) {
  const found = { axis: [-1, -1, -1], sign: [1, 1, 1] };
  const candidates = [];
  for (let w = 0; w < 3; w++) for (let a = 0; a < 3; a++) candidates.push([affine[w][a] / spacing[a], w, a]);
  candidates.sort((p, q) => Math.abs(q[0]) - Math.abs(p[0]));
  for (const [cosine, w, a] of candidates) {
    if (found.axis[w] !== -1 || found.axis.includes(a)) continue;
    found.axis[w] = a;
    found.sign[w] = cosine < 0 ? -1 : 1;
  }
  return found;
}

/** RAS millimeters of a voxel. */
export function toWorld(affine, [i, j, k]) {
  return affine.map((row) => row[0] * i + row[1] * j + row[2] * k + row[3]);
}
