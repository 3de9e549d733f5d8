// The NIfTI reader on files that nibabel wrote (tests/ui/test_edit_core.py makes them and says what they hold).
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { orientation, parseNifti, toWorld } from "../../ui/static/nifti.js";

const letters = { 0: ["L", "R"], 1: ["P", "A"], 2: ["I", "S"] };

for (const { file, dims, affine, axes, last, sum } of JSON.parse(process.env.NIFTI_CASES ?? "[]")) {
  test(`${file.split("/").at(-1)}: voxels, affine and orientation as nibabel reads them`, () => {
    const bytes = readFileSync(file);
    const image = parseNifti(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    assert.deepEqual(image.dims, dims);
    assert.equal(image.data.at(-1), last);
    assert.equal(image.data.reduce((a, b) => a + b, 0), sum);
    image.affine.forEach((row, r) => row.forEach((value, c) => assert.ok(Math.abs(value - affine[r][c]) < 1e-3, `${value} ${affine[r][c]}`)));
    const found = orientation(image);
    const named = ["", "", ""];
    found.axis.forEach((axis, world) => (named[axis] = letters[world][found.sign[world] > 0 ? 1 : 0]));
    assert.equal(named.join(""), axes);
    toWorld(image.affine, [1, 2, 3]).forEach((value, r) => {
      assert.ok(Math.abs(value - (affine[r][0] + 2 * affine[r][1] + 3 * affine[r][2] + affine[r][3])) < 1e-2);
    });
  });
}

test("what is not shown is refused with a reason", () => {
  assert.throws(() => parseNifti(new ArrayBuffer(400)), /not a little-endian NIfTI/);
  const cut = new DataView(new ArrayBuffer(360));
  cut.setInt32(0, 348, true);
  [42, 44, 46].forEach((at) => cut.setInt16(at, 10, true));
  cut.setInt16(70, 16, true);
  assert.throws(() => parseNifti(cut.buffer), /datatype 16/);
  cut.setInt16(70, 4, true);
  cut.setFloat32(108, 352, true);
  assert.throws(() => parseNifti(cut.buffer), /truncated/);
});
