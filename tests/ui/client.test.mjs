// The save loop against a server made of a few lines.
import assert from "node:assert/strict";
import test from "node:test";

import { Conflict, Saver, Stopwatch } from "../../ui/static/client.js";
import { OrganEdit } from "../../ui/static/edit.js";

const GRID = { dims: [4, 1, 1], spacing: [1, 1, 1] };

function setup(putRuns) {
  const edit = new OrganEdit({ mask: new Uint8Array(4), ...GRID });
  const said = [];
  const saver = new Saver({ putRuns }, {
    caseId: "c", organ: "o", edit, revision: 3, stopwatch: new Stopwatch(), report: (state) => said.push(state),
  });
  const stroke = (x) => { edit.assign("paint", [x], [1]); saver.touch(); };
  return { edit, saver, said, stroke };
}

test("a stroke is saved by itself, on the revision it was made on", async () => {
  const calls = [];
  const { edit, said, stroke, saver } = setup(async (c, o, runs, { revision }) => { calls.push([...runs, revision]); return revision + 1; });
  stroke(1);
  assert.equal(saver.pending, true);
  await new Promise((done) => setTimeout(done, 1100));
  assert.deepEqual(calls, [[1, 1, 1, 3]]);
  assert.deepEqual(said, ["unsaved", "saving", "saved"]);
  assert.equal(saver.revision, 4);
  assert.equal(edit.dirty || saver.pending, false);
});

test("a conflict stops the loop and loses nothing", async () => {
  const { edit, saver, said, stroke } = setup(async () => { throw new Conflict(9); });
  stroke(1);
  await assert.rejects(saver.flush(), Conflict);
  stroke(2);
  assert.equal(said.at(-1), "conflict");
  assert.equal(edit.unsaved.size, 2);
  assert.equal(saver.timer === null || saver.blocked, true);
});

test("while the server is away edits wait, and go when it is back", async () => {
  let away = true;
  const calls = [];
  const { edit, saver, said, stroke } = setup(async (c, o, runs) => {
    if (away) throw new TypeError("fetch failed");
    calls.push([...runs]);
    return 4;
  });
  stroke(0);
  await assert.rejects(saver.flush());
  assert.equal(said.at(-1), "offline");
  stroke(1);
  away = false;
  await saver.flush();
  clearTimeout(saver.timer);
  assert.deepEqual(calls, [[0, 2, 1]]);
  assert.equal(edit.dirty, false);
});

test("only time at work counts", () => {
  const watch = new Stopwatch(15000);
  [0.001, 2000, 5000, 65000, 66000].forEach((ms) => watch.touch(ms));
  assert.ok(Math.abs(watch.take() - 6) < 0.01);
  assert.equal(watch.take(), 0);
});
