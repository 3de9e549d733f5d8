// Runs on voxels few enough to write out.
import assert from "node:assert/strict";
import test from "node:test";

import { Packed, applyRuns, countVoxels, encodeRuns, inflateRuns, inverseRuns, packRuns, sharedVoxels, unpackRuns } from "../../ui/static/runs.js";

const runs = (...values) => Uint32Array.from(values);

test("neighboring voxels of different values are different runs", () => {
  assert.deepEqual(encodeRuns([4, 5, 6, 8], Uint8Array.from([0, 0, 0, 0, 1, 1, 0, 0, 0])), runs(4, 2, 1, 6, 1, 0, 8, 1, 0));
  assert.deepEqual(encodeRuns([], new Uint8Array(3)), runs());
});

test("what was written is taken back by the inverse", () => {
  const mask = Uint8Array.from([0, 1, 1, 0, 0]);
  applyRuns(mask, runs(0, 1, 1, 2, 1, 0));
  assert.deepEqual([...mask], [1, 1, 0, 0, 0]);
  applyRuns(mask, inverseRuns(runs(0, 1, 1, 2, 1, 0)));
  assert.deepEqual([...mask], [0, 1, 1, 0, 0]);
  assert.equal(countVoxels(runs(0, 1, 1, 2, 3, 0)), 4);
});

test("voxels two edits share are counted, whatever the values", () => {
  assert.equal(sharedVoxels(runs(0, 4, 1, 10, 2, 1), runs(2, 9, 0)), 3); // 2, 3 and 10
  assert.equal(sharedVoxels(runs(0, 4, 1), runs(4, 4, 1)), 0);
  assert.equal(sharedVoxels(runs(), runs(4, 4, 1)), 0);
});

test("runs survive the wire, gzip or zlib", async () => {
  const sent = runs(7, 3, 1, 4_000_000_000, 5, 0);
  assert.deepEqual(await unpackRuns(await packRuns(sent)), sent);
  const zlib = new Blob([sent]).stream().pipeThrough(new CompressionStream("deflate"));
  assert.deepEqual(await inflateRuns(new Uint8Array(await new Response(zlib).arrayBuffer())), sent);
  assert.deepEqual(await inflateRuns(new Uint8Array(0)), runs());
});

test("a packed label map is itself again", () => {
  for (const voxels of [[0, 0, 3, 3, 7, 0], [5], [2, 2, 2], []]) {
    assert.deepEqual([...new Packed(Uint8Array.from(voxels)).unpack()], voxels);
    const shifted = Uint8Array.from([9, ...voxels]).subarray(1); // not at the start of a word
    assert.deepEqual([...new Packed(shifted).unpack()], voxels);
  }
  const stretches = [];
  new Packed(Uint8Array.from([0, 0, 3, 7])).each((...stretch) => stretches.push(stretch));
  assert.deepEqual(stretches, [[0, 0, 2], [3, 2, 3], [7, 3, 4]]);
});

test("long stretches are packed exactly, wherever they begin and end", () => {
  for (let start = 0; start < 9; start++) {
    for (let length = 0; length < 13; length++) {
      const voxels = new Uint8Array(23).fill(255, start, start + length);
      const stretches = [];
      new Packed(voxels).each((...stretch) => stretches.push(stretch));
      const expected = length === 0 ? [[0, 0, 23]] : [[0, 0, start], [255, start, start + length], [0, start + length, 23]].filter(([, from, to]) => to > from);
      assert.deepEqual(stretches, expected);
    }
  }
});
