// Fills, lassos, components and slices, on pictures one can check by eye.
import assert from "node:assert/strict";
import test from "node:test";

import { boxFaces, componentVoxels, copySliceRuns, difference, differenceWithin, flood, polygonVoxels, seedBox, withRim } from "../../ui/static/region.js";
import { Packed } from "../../ui/static/runs.js";

const GRID = { dims: [6, 4, 2] };
const at = (x, y, z = 0) => x + 6 * (y + 4 * z);
const voxelsOf = (...slices) => Uint8Array.from(slices.flat().flatMap((row) => [...row].map((c) => (c === "." ? 0 : Number(c)))));
const EMPTY = ["......", "......", "......", "......"];
const drawn = (voxels, z = 0) => EMPTY.map((row, y) => [...row].map((_, x) => (voxels.includes(at(x, y, z)) ? "#" : ".")).join(""));

test("a fill spreads over faces, in one slice or through all", () => {
  const map = voxelsOf(["11.1..", "1..1..", "1.11..", "......"], ["1.....", "......", "......", "....1."]);
  const inside = (voxel) => map[voxel] === 1;
  const flat = [...flood(GRID, [0, 0, 0], inside, { flat: 2 }).voxels];
  assert.deepEqual(drawn(flat), ["##....", "#.....", "#.....", "......"]);
  assert.deepEqual(drawn(flat, 1), EMPTY);
  assert.deepEqual(drawn([...flood(GRID, [0, 0, 0], inside).voxels], 1), ["#.....", "......", "......", "......"]);
});

test("a fill stays in its box and says when the limit stopped it", () => {
  const all = () => true;
  assert.deepEqual(drawn([...flood(GRID, [1, 1, 0], all, { box: [[0, 3], [1, 3], [0, 1]] }).voxels]), ["......", "###...", "###...", "......"]);
  assert.deepEqual(flood(GRID, [1, 1, 0], all, { limit: 5 }).voxels.length, 5);
  assert.equal(flood(GRID, [1, 1, 0], all, { limit: 5 }).complete, false);
  assert.equal(flood(GRID, [1, 1, 0], all).complete, true);
  assert.equal(flood(GRID, [1, 1, 0], () => false).voxels.length, 0);
});

test("a component is connected over corners", () => {
  const flags = voxelsOf(["1.....", ".4....", "....2.", "......"], EMPTY);
  const component = { peak: [0, 0, 0], box: [[0, 2], [0, 2], [0, 1]] };
  assert.deepEqual([...componentVoxels(GRID, flags, component)], [at(0, 0), at(1, 1)]);
});

test("the rim of a component is one voxel over faces, inside the volume", () => {
  assert.deepEqual(drawn([...withRim(GRID, [at(0, 1)])]), ["#.....", "##....", "#.....", "......"]);
  assert.deepEqual(drawn([...withRim(GRID, [at(0, 1)])], 1), ["......", "#.....", "......", "......"]);
});

test("a lasso takes the voxels whose centers it encloses", () => {
  const square = [[0.5, 0.5, 1], [3.4, 0.5, 1], [3.4, 2.6, 1], [0.5, 2.6, 1]];
  assert.deepEqual(drawn([...polygonVoxels(GRID, square, 2)], 1), ["......", ".###..", ".###..", "......"]);
  const outside = [[-5, -5, 0], [20, -5, 0], [20, 20, 0], [-5, 20, 0]];
  assert.equal(polygonVoxels(GRID, outside, 2).length, 24);
});

test("a lasso on another plane lies in that plane", () => {
  const square = [[2, 0.5, -0.5], [2, 2.5, -0.5], [2, 2.5, 1.5], [2, 0.5, 1.5]];
  assert.deepEqual([...polygonVoxels(GRID, square, 0)], [at(2, 1, 0), at(2, 2, 0), at(2, 1, 1), at(2, 2, 1)].sort((a, b) => a - b));
});

test("a lasso that is a line or a point encloses nothing", () => {
  assert.equal(polygonVoxels(GRID, [[1, 1, 0]], 2).length, 0);
  assert.equal(polygonVoxels(GRID, [[1, 1, 0], [4, 2, 0]], 2).length, 0);
});

test("copying a slice adds and removes", () => {
  const mask = voxelsOf(["11....", "......", "......", "......"], [".11...", "......", "......", "......"]);
  assert.deepEqual([...copySliceRuns(GRID, mask, 2, 0, 1)], [at(0, 0, 1), 1, 1, at(2, 0, 1), 1, 0]);
});

test("what taking an organ from elsewhere would change, everywhere or in a region", () => {
  const mask = voxelsOf(["111...", "......", "......", "......"], EMPTY);
  const other = new Packed(voxelsOf([".555..", "......", "......", ".....9"], EMPTY));
  const whole = difference(mask, other, 5);
  assert.deepEqual([...whole.runs], [0, 1, 0, 3, 1, 1]);
  assert.equal(whole.voxels, 2);
  assert.equal(whole.dice, 4 / 6);
  assert.deepEqual([...differenceWithin(mask, other, 5, new Set([4, 3]))], [3, 1, 1]);
  assert.equal(difference(new Uint8Array(48), new Packed(new Uint8Array(48)), 5).dice, 1);
});

test("the box of some strokes has a margin in mm, within the volume and within what can be solved", () => {
  const grid = { dims: [40, 40, 10], spacing: [1, 2, 5] };
  const voxels = [20 + 40 * (20 + 40 * 5), 22 + 40 * (20 + 40 * 5)];
  assert.deepEqual(seedBox(grid, voxels, { margin: 10 }), [[10, 33], [15, 26], [3, 8]]);
  const small = seedBox(grid, voxels, { margin: 10, most: 300 });
  assert.ok(small.reduce((size, [start, stop]) => size * (stop - start), 1) <= 300);
  assert.ok(small[0][0] < 20 && small[0][1] > 22);
});

test("the faces of a box", () => {
  assert.deepEqual(drawn(boxFaces(GRID, [[1, 4], [0, 3], [0, 1]])), [".###..", ".###..", ".###..", "......"]);
  const grid = { dims: [3, 3, 3] };
  assert.equal(boxFaces(grid, [[0, 3], [0, 3], [0, 3]]).length, 26);
});
