// The edit core on volumes small enough to check by eye.
import assert from "node:assert/strict";
import test from "node:test";

import { OrganEdit, UNDO_DEPTH, bake, protectedIds, rebuildStacks } from "../../ui/static/edit.js";
import { applyRuns } from "../../ui/static/runs.js";

const DIMS = [7, 5, 3];
const SPACING = [1, 1, 4];
const at = (x, y, z) => x + DIMS[0] * (y + DIMS[1] * z);
const fresh = () => new OrganEdit({ mask: new Uint8Array(105), dims: DIMS, spacing: SPACING });
const picture = (edit, z) =>
  Array.from({ length: DIMS[1] }, (_, y) => Array.from({ length: DIMS[0] }, (_, x) => ".#"[edit.mask[at(x, y, z)]]).join(""));
const disc = { radius: 1, value: 1, across: 2 };

function paint(edit, from, to = from, how = disc) {
  edit.begin(how.value ? "paint" : "erase");
  edit.paint(from, to, how);
  return edit.end();
}

test("a disc stays in its slice", () => {
  const edit = fresh();
  paint(edit, [3, 2, 1]);
  assert.deepEqual(picture(edit, 1), [".......", "...#...", "..###..", "...#...", "......."]);
  assert.equal(edit.mask.reduce((a, b) => a + b), 5);
});

test("a stroke covers the segment between two mouse positions, however fast the mouse was", () => {
  const edit = fresh();
  paint(edit, [0, 2, 0], [6, 2, 0], { ...disc, radius: 0.1 });
  assert.deepEqual(picture(edit, 0), [".......", ".......", "#######", ".......", "......."]);
});

test("a sphere is round in millimeters, so it needs 4 mm to reach the next 4 mm slice", () => {
  const edit = fresh();
  paint(edit, [3, 2, 1], [3, 2, 1], { ...disc, radius: 3.9, sphere: true });
  assert.equal(edit.mask[at(3, 2, 0)], 0);
  paint(edit, [3, 2, 1], [3, 2, 1], { ...disc, radius: 4, sphere: true });
  assert.equal(edit.mask[at(3, 2, 0)], 1);
  assert.equal(edit.mask[at(3, 2, 2)], 1);
  assert.equal(edit.mask[at(2, 2, 2)], 0);
});

test("a disc across another file axis paints that plane, with its own spacing", () => {
  const edit = fresh();
  paint(edit, [3, 2, 1], [3, 2, 1], { radius: 1, value: 1, across: 0 });
  // Half a 4 mm voxel is the least reach: 2 mm in y, and only the slice itself in z.
  assert.deepEqual([0, 1, 2, 3, 4].map((y) => edit.mask[at(3, y, 1)]), [1, 1, 1, 1, 1]);
  assert.deepEqual([0, 2].map((z) => edit.mask[at(3, 2, z)]), [0, 0]);
  assert.deepEqual([2, 4].map((x) => edit.mask[at(x, 2, 1)]), [0, 0]);
});

test("painting stops at the border of the volume", () => {
  const edit = fresh();
  paint(edit, [-1, -1, 0], [0, 0, 0]);
  assert.deepEqual(picture(edit, 0), ["##.....", "#......", ".......", ".......", "......."]);
  assert.deepEqual(picture(edit, 1).join(""), ".".repeat(35));
});

test("the eraser removes only what it touches", () => {
  const edit = fresh();
  edit.mask.fill(1);
  paint(edit, [3, 2, 1], [3, 2, 1], { ...disc, value: 0 });
  assert.deepEqual(picture(edit, 1), ["#######", "###.###", "##...##", "###.###", "#######"]);
});

test("other organs are protected, organs that may touch are not", () => {
  const organs = [
    { name: "a", label_id: 1, may_touch: ["b"] }, { name: "b", label_id: 2, may_touch: [] }, { name: "c", label_id: 9, may_touch: [] },
  ];
  const table = protectedIds(organs[0], organs);
  assert.deepEqual([0, 1, 2, 9].map((id) => table[id]), [0, 0, 0, 1]);
  const labels = new Uint8Array(105);
  labels[at(3, 2, 1)] = 9;
  const edit = fresh();
  paint(edit, [3, 2, 1], [3, 2, 1], { ...disc, blocked: (voxel) => table[labels[voxel]] === 1 });
  assert.deepEqual(picture(edit, 1), [".......", "...#...", "..#.#..", "...#...", "......."]);
});

test("undo and redo walk single named steps; a new stroke ends the redo", () => {
  const edit = fresh();
  paint(edit, [1, 1, 0]);
  paint(edit, [4, 3, 0]);
  const both = edit.mask.slice();
  assert.equal(edit.undo().name, "paint");
  assert.equal(edit.mask[at(4, 3, 0)], 0);
  assert.equal(edit.mask[at(1, 1, 0)], 1);
  edit.undo();
  assert.equal(edit.undo(), null);
  assert.ok(edit.mask.every((v) => v === 0));
  edit.redo();
  edit.redo();
  assert.equal(edit.redo(), null);
  assert.deepEqual(edit.mask, both);
  edit.undo();
  paint(edit, [5, 0, 2]);
  assert.equal(edit.redo(), null);
});

test("a stroke that changes nothing is no step", () => {
  const edit = fresh();
  paint(edit, [1, 1, 0]);
  assert.equal(paint(edit, [1, 1, 0]), null);
  assert.equal(edit.past.length, 1);
});

test("the undo history is bounded", () => {
  const edit = fresh();
  for (let n = 0; n < UNDO_DEPTH + 20; n++) paint(edit, [3, 2, 0], [3, 2, 0], { ...disc, value: 1 - (n % 2) });
  let steps = 0;
  while (edit.undo()) steps += 1;
  assert.equal(steps, UNDO_DEPTH);
});

test("a step says what changed as runs in file order, and undo says the opposite", () => {
  const edit = fresh();
  edit.mask[at(6, 4, 2)] = 1;
  const step = paint(edit, [3, 2, 0]);
  assert.deepEqual([step.name, step.kind], ["paint", "edit"]);
  assert.deepEqual([...step.runs], [at(3, 1, 0), 1, 1, at(2, 2, 0), 3, 1, at(3, 3, 0), 1, 1]);
  const undone = edit.undo();
  assert.deepEqual([undone.name, undone.kind], ["paint", "undo"]);
  assert.deepEqual([...undone.runs], [at(3, 1, 0), 1, 0, at(2, 2, 0), 3, 0, at(3, 3, 0), 1, 0]);
  assert.deepEqual([edit.redo().kind, edit.mask[at(3, 2, 0)]], ["redo", 1]);
});

test("an open stroke can be looked at without ending it", () => {
  const edit = fresh();
  edit.begin("paint");
  edit.paint([1, 1, 0], [1, 1, 0], { ...disc, radius: 0.5 });
  assert.deepEqual([...edit.soFar().runs], [at(1, 1, 0), 1, 1]);
  edit.paint([2, 1, 0], [2, 1, 0], { ...disc, radius: 0.5 });
  assert.deepEqual([...edit.end().runs], [at(1, 1, 0), 2, 1]);
});

test("a proposal's runs change only what differs and is not blocked", () => {
  const edit = fresh();
  edit.mask.set([1, 0, 1, 0]);
  const step = edit.write("grow", Uint32Array.from([0, 2, 1, 2, 2, 0]), (voxel, value) => voxel === 1 && value === 1);
  assert.deepEqual([...step.runs], [2, 1, 0]);
  assert.deepEqual([...edit.mask.slice(0, 4)], [1, 0, 0, 0]);
});

test("the steps sent to the server rebuild mask, undo and redo, after any mixture of steps", () => {
  const edit = fresh();
  const sent = [];
  let seed = 7;
  const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
  for (let n = 0; n < 400; n++) {
    const p = [random(7), random(5), random(3)];
    const how = { radius: 0.5 + random(4), value: random(2), across: random(3), sphere: random(2) === 1 };
    const step = [() => paint(edit, p, [random(7), random(5), p[2]], how), () => edit.undo(), () => edit.redo()][random(3)]();
    if (step) sent.push(step);
  }
  const mask = new Uint8Array(105);
  for (const { runs } of sent) applyRuns(mask, runs);
  assert.deepEqual(mask, edit.mask);
  const { past, future } = rebuildStacks(sent);
  assert.deepEqual(past, edit.past);
  assert.deepEqual(future, edit.future);
});

test("of a history that begins in the middle, an undo whose step is not known can still be redone", () => {
  const { past, future } = rebuildStacks([{ name: "paint", kind: "undo", runs: Uint32Array.from([4, 2, 0]) }]);
  assert.deepEqual(past, []);
  assert.deepEqual(future.map(({ name, runs }) => [name, ...runs]), [["paint", 4, 2, 1]]);
});

test("somebody's steps slip under the own ones", () => {
  const edit = fresh();
  const own = paint(edit, [1, 1, 0], [1, 1, 0], { ...disc, radius: 0.5 });
  const theirs = { name: "paint", kind: "edit", runs: Uint32Array.from([at(5, 4, 2), 1, 1]) };
  edit.slipUnder([own], [theirs], [theirs, own]);
  assert.deepEqual([at(1, 1, 0), at(5, 4, 2)].map((v) => edit.mask[v]), [1, 1]);
  edit.undo();
  assert.deepEqual([at(1, 1, 0), at(5, 4, 2)].map((v) => edit.mask[v]), [0, 1]);
});

test("baking an organ into the label map leaves the other organs", () => {
  const labels = Uint8Array.from([0, 5, 5, 2, 2]);
  bake(labels, Uint8Array.from([1, 0, 1, 1, 0]), 5);
  assert.deepEqual([...labels], [5, 0, 5, 2, 2]);
});
