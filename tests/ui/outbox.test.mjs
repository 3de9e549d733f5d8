// Sending steps, and meeting somebody else's, against a server made of a few lines.
import assert from "node:assert/strict";
import test from "node:test";

import { Conflict } from "../../ui/static/client.js";
import { OrganState } from "../../ui/static/organs.js";
import { reconcile } from "../../ui/static/outbox.js";
import { applyRuns } from "../../ui/static/runs.js";

const SIZE = 8;

/** Keeps revisions as the real one does: appended only on top of the revision named. */
class Server {
  constructor() {
    Object.assign(this, { revisions: [], away: false, loseAnswer: false });
  }

  add(user, ...steps) {
    for (const step of steps) this.revisions.push({ ...step, user, revision_id: this.revisions.length + 1 });
  }

  async postSteps(caseId, organ, steps, revision) {
    if (this.away) throw new TypeError("fetch failed");
    if (revision !== this.revisions.length) throw new Conflict(this.revisions.length);
    this.add("anna", ...steps);
    if (this.loseAnswer) throw new TypeError("fetch failed");
    return this.revisions.length;
  }

  async steps() {
    return { rev: this.revisions.length, steps: [...this.revisions] };
  }

  mask() {
    const mask = new Uint8Array(SIZE);
    for (const { runs } of this.revisions) applyRuns(mask, runs);
    return mask;
  }
}

/** What IndexedDB does, in memory; `disk` outlives the session. */
class MemoryDrafts {
  constructor(disk = []) {
    Object.assign(this, { disk, next: 1 + Math.max(0, ...disk.map(({ id }) => id)) });
  }

  async put(shelf, parent, step, id = this.next++) {
    this.disk.splice(0, this.disk.length, ...this.disk.filter((record) => record.id !== id), { id, shelf, parent, step });
    this.disk.sort((a, b) => a.id - b.id);
    return id;
  }

  async confirm(ids, waiting, parent) {
    this.disk.splice(0, this.disk.length, ...this.disk.filter((record) => !ids.includes(record.id)));
    for (const { id } of waiting) for (const record of this.disk) if (record.id === id) record.parent = parent;
  }

  async remove(ids) {
    await this.confirm(ids, [], 0);
  }

  async list() {
    return [...this.disk];
  }
}

function session(server, { drafts = new MemoryDrafts(), choice = "mine" } = {}) {
  const said = [];
  const asked = [];
  const state = new OrganState({ name: "o" }, { mask: server.mask(), revision: server.revisions.length, steps: [...server.revisions] }, {
    client: server, drafts, caseId: "c", shelf: { user: "anna", caseId: "c", organ: "o" }, user: "anna", dims: [SIZE, 1, 1], spacing: [1, 1, 1],
    report: ({ status }) => said.push(status), changed: () => {}, ask: async (conflict) => { asked.push(conflict); return choice; },
  });
  const paint = (voxel, value = 1) => state.send(state.edit.set(value ? "paint" : "erase", [voxel], value));
  const undo = () => state.send(state.edit.undo());
  return { state, drafts, said, asked, paint, undo, flush: () => state.outbox.flush() };
}

const step = (start, length, value, rest = {}) => ({ name: "paint", kind: "edit", runs: Uint32Array.from([start, length, value]), ...rest });
const quiet = ({ state }) => clearTimeout(state.outbox.timer);

test("a stroke is sent by itself and leaves the drafts once it is confirmed", async () => {
  const server = new Server();
  const { state, drafts, said, paint } = session(server);
  paint(1);
  assert.equal(state.outbox.pending, true);
  await new Promise((done) => setTimeout(done, 450));
  assert.deepEqual(server.revisions.map(({ name, kind, runs }) => [name, kind, ...runs]), [["paint", "edit", 1, 1, 1]]);
  assert.deepEqual(said, ["unsaved", "saving", "saved"]);
  assert.deepEqual([state.outbox.revision, state.outbox.pending, drafts.disk.length], [1, false, 0]);
});

test("every step is one revision, undo and redo too", async () => {
  const server = new Server();
  const { state, paint, undo, flush } = session(server);
  paint(1);
  paint(2);
  undo();
  state.send(state.edit.redo());
  await flush();
  assert.deepEqual(server.revisions.map(({ kind }) => kind), ["edit", "edit", "undo", "redo"]);
  assert.deepEqual([...server.mask()], [...state.edit.mask]);
});

test("while the server is away steps wait with the drafts, and go when it is back", async () => {
  const server = new Server();
  const s = session(server);
  server.away = true;
  s.paint(0);
  await assert.rejects(s.flush());
  assert.equal(s.said.at(-1), "offline");
  s.paint(1);
  quiet(s);
  await Promise.all(s.state.outbox.queue.map(({ id }) => id));
  assert.equal(s.drafts.disk.length, 2);
  server.away = false;
  await s.flush();
  assert.deepEqual([...server.mask()], [1, 1, 0, 0, 0, 0, 0, 0]);
  assert.equal(s.drafts.disk.length, 0);
});

test("a browser that died: the next session takes up the steps with their undo", async () => {
  const server = new Server();
  server.add("anna", step(7, 1, 1));
  const dead = session(server);
  server.away = true;
  dead.paint(0);
  dead.paint(1);
  dead.undo();
  await assert.rejects(dead.flush());
  quiet(dead);
  server.away = false;
  const s = session(server, { drafts: new MemoryDrafts(dead.drafts.disk) });
  assert.equal(await s.state.replayDrafts(server.revisions.slice()), 3);
  await s.flush();
  assert.deepEqual([...server.mask()], [1, 0, 0, 0, 0, 0, 0, 1]);
  assert.deepEqual([s.state.edit.past.length, s.state.edit.future.length], [2, 1]);
  assert.equal(s.drafts.disk.length, 0);
});

test("a browser that died in a stroke keeps the stroke as far as it was", async () => {
  const server = new Server();
  const dead = session(server);
  dead.state.edit.begin("paint");
  dead.state.edit.mask[3] = 1;
  dead.state.edit.stroke.voxels.push(3);
  dead.state.keepStroke(5000);
  await dead.state.outbox.openId;
  const s = session(server, { drafts: new MemoryDrafts(dead.drafts.disk) });
  await s.state.replayDrafts([]);
  await s.flush();
  assert.deepEqual([...server.mask()], [0, 0, 0, 1, 0, 0, 0, 0]);
});

test("a stroke that ended replaces what was kept of it", async () => {
  const server = new Server();
  const s = session(server);
  s.state.edit.begin("paint");
  s.state.edit.mask[3] = 1;
  s.state.edit.stroke.voxels.push(3);
  s.state.keepStroke(5000);
  s.state.send(s.state.edit.end());
  await s.flush();
  assert.equal(server.revisions.length, 1);
  assert.equal(s.drafts.disk.length, 0);
});

test("however many ask at once, every step is sent once", async () => {
  const server = new Server();
  const s = session(server);
  let requests = 0;
  const post = server.postSteps.bind(server);
  server.postSteps = async (...all) => { requests += 1; await new Promise((done) => setTimeout(done, 5)); return post(...all); };
  for (let n = 0; n < 120; n++) s.paint(n % 4, Math.floor(n / 4) % 2 ? 0 : 1);
  await Promise.all([s.flush(), s.flush(), s.flush()]);
  assert.equal(requests, 3); // fifty a request
  assert.deepEqual([...server.mask()], [...s.state.edit.mask]);
  assert.equal(server.revisions.length, 120);
});

test("an answer that got lost is not sent twice", async () => {
  const server = new Server();
  const s = session(server);
  server.loseAnswer = true;
  s.paint(2);
  await assert.rejects(s.flush());
  quiet(s);
  server.loseAnswer = false;
  s.paint(3);
  await s.flush();
  assert.deepEqual(server.revisions.map(({ runs }) => runs[0]), [2, 3]);
  assert.equal(s.asked.length, 0);
});

test("somebody's steps elsewhere slip under the own ones, unasked", async () => {
  const server = new Server();
  const s = session(server);
  s.paint(1);
  server.add("bob", step(5, 2, 1));
  await s.flush();
  assert.deepEqual(server.revisions.map(({ user }) => user), ["bob", "anna"]);
  assert.deepEqual([...server.mask()], [0, 1, 0, 0, 0, 1, 1, 0]);
  assert.deepEqual([...s.state.edit.mask], [...server.mask()]);
  assert.equal(s.asked.length, 0);
  s.undo();
  await s.flush();
  assert.deepEqual([...server.mask()], [0, 0, 0, 0, 0, 1, 1, 0]);
});

test("an own undo that meets somebody's step becomes an edit, so that it undoes the own step and not theirs", async () => {
  const server = new Server();
  const s = session(server);
  s.paint(1);
  await s.flush();
  server.add("bob", step(5, 2, 1));
  s.undo();
  await s.flush();
  assert.deepEqual([...server.mask()], [0, 0, 0, 0, 0, 1, 1, 0]);
  assert.equal(server.revisions.at(-1).kind, "edit");
});

test("where both changed the same voxels the annotator is asked; mine goes on top", async () => {
  const server = new Server();
  const s = session(server);
  s.paint(1);
  s.paint(2);
  server.add("bob", step(2, 3, 1));
  server.add("bob", step(4, 1, 0));
  s.paint(4);
  await s.flush();
  assert.equal(s.asked.length, 1);
  assert.equal(s.asked[0].shared, 3); // 2 once, and 4 in both of bob's steps
  assert.deepEqual([...server.mask()], [0, 1, 1, 1, 1, 0, 0, 0]);
  assert.deepEqual([...s.state.edit.mask], [...server.mask()]);
});

test("... or theirs stays, and redo brings mine back: nothing is lost", async () => {
  const server = new Server();
  const s = session(server, { choice: "theirs" });
  s.paint(2);
  s.state.send(s.state.edit.set("erase", [2], 0));
  s.paint(6);
  server.add("bob", step(2, 3, 1));
  await s.flush();
  assert.deepEqual([...server.mask()], [0, 0, 1, 1, 1, 0, 0, 0]);
  assert.deepEqual([...s.state.edit.mask], [...server.mask()]);
  s.state.send(s.state.edit.redo());
  await s.flush();
  assert.deepEqual([...server.mask()], [0, 0, 0, 1, 1, 0, 1, 0]);
});

test("an organ at rest is woken for a conflict", async () => {
  const server = new Server();
  const s = session(server);
  s.paint(1);
  s.state.rest();
  server.add("bob", step(5, 2, 1));
  await s.flush();
  assert.equal(s.state.edit.mask, null);
  s.state.wake();
  assert.deepEqual([...s.state.edit.mask], [0, 1, 0, 0, 0, 1, 1, 0]);
});

test("own steps are told from somebody's by user, name, kind and voxels", () => {
  const mine = step(1, 2, 1);
  const newer = [{ ...mine, user: "anna" }, { ...step(5, 1, 1), user: "bob" }];
  assert.deepEqual(reconcile([mine, step(6, 1, 1)], newer, "anna"), { own: [step(6, 1, 1)], theirs: [newer[1]], shared: 0 });
  assert.equal(reconcile([mine], [{ ...mine, user: "bob" }], "anna").shared, 2);
});

test("the mask before an earlier step", async () => {
  const server = new Server();
  const s = session(server);
  s.paint(1);
  s.paint(2);
  s.paint(1, 0);
  await s.flush();
  assert.deepEqual([...(await s.state.maskAt(1))], [0, 1, 0, 0, 0, 0, 0, 0]);
  assert.deepEqual([...(await s.state.maskAt(0))], [0, 0, 0, 0, 0, 0, 0, 0]);
});
