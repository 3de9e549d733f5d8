// Keys, clocks, colors, and which network is next: whatever of the editor's controls needs no browser.
import assert from "node:assert/strict";
import test from "node:test";

import { THERMAL, grayTable } from "../../ui/static/colors.js";
import { KEYS, actionOf, keyName } from "../../ui/static/keys.js";
import { commentList, historyList, reviewedShare, takeTable } from "../../ui/static/panels.js";
import { Packed } from "../../ui/static/runs.js";
import { Stopwatch } from "../../ui/static/stopwatch.js";
import { Takeover, componentRegion } from "../../ui/static/take.js";

const press = (key, rest = {}) => ({ key, target: { tagName: "DIV" }, ...rest });

test("a key's name has its modifiers, whatever the keyboard's layout", () => {
  assert.equal(keyName(press("T", { shiftKey: true })), "shift+t");
  assert.equal(keyName(press("Z", { shiftKey: true, metaKey: true })), "ctrl+shift+z");
  assert.equal(keyName(press("?", { shiftKey: true })), "?");
  assert.equal(keyName(press("!", { shiftKey: true, code: "Digit1" })), "shift+1");
  assert.equal(keyName(press("3", { altKey: true, code: "Digit3" })), "alt+3");
});

test("no key is bound twice, and every bound key is in the help", () => {
  const bound = KEYS.flatMap(([, rows]) => rows.flatMap(([, , keys]) => Object.keys(keys)));
  assert.equal(new Set(bound).size, bound.length);
  for (const [, rows] of KEYS) for (const [shown, what] of rows) assert.ok(shown && what);
});

test("text fields get every key, a focused button its own", () => {
  for (const target of [{ tagName: "INPUT", type: "text" }, { tagName: "INPUT", type: "number" }, { tagName: "TEXTAREA" }, { tagName: "SELECT" }, { tagName: "DIV", isContentEditable: true }]) {
    assert.equal(actionOf({ key: "z", target }), null);
  }
  assert.equal(actionOf({ key: " ", target: { tagName: "BUTTON" } }), null);
  assert.notEqual(actionOf({ key: "z", target: { tagName: "BUTTON" } }), null);
  assert.notEqual(actionOf({ key: "z", target: { tagName: "INPUT", type: "range" } }), null);
});

test("without a case only the keys that open one work", () => {
  assert.equal(actionOf(press("z"), { open: false }), null);
  assert.notEqual(actionOf(press("N", { shiftKey: true }), { open: false }), null);
});

test("only time at work counts, for the organ and the component it was spent on", () => {
  const watch = new Stopwatch(15000);
  watch.touch(1);
  watch.turnTo({ organ: "a", component: 2 }, 3001);
  watch.touch(5001);
  watch.touch(65001); // a minute away
  watch.touch(66001);
  assert.equal(watch.take(), 3);
  assert.equal(watch.take(), 0);
  watch.touch(67001);
  watch.turnTo({ organ: "b" }, 68001);
  watch.touch(68501);
  const entries = watch.takeAll();
  const expected = [{ organ: null, component: null, seconds: 3 }, { organ: "a", component: 2, seconds: 2 }, { organ: "b", component: null, seconds: 0.5 }];
  assert.deepEqual(entries, expected);
  watch.putBack(entries);
  watch.touch(69501);
  assert.equal(watch.take(), 1.5);
});

test("heat gets lighter and more opaque with every step, from nearly black to white", () => {
  const lightness = [...THERMAL].map((c) => 0.2126 * (c & 255) + 0.7152 * ((c >> 8) & 255) + 0.0722 * ((c >> 16) & 255));
  for (let h = 2; h < 256; h++) {
    assert.ok(lightness[h] >= lightness[h - 1], `heat ${h} is darker than ${h - 1}`);
    assert.ok(THERMAL[h] >>> 24 >= THERMAL[h - 1] >>> 24);
  }
  assert.equal(THERMAL[0], 0);
  assert.ok(lightness[1] < 20);
  assert.equal(THERMAL[255] & 0xffffff, 0xffffff);
});

test("a window maps its ends to black and white", () => {
  const gray = grayTable(400, 40);
  assert.deepEqual([-161, -160, 40, 240, 3000].map((hu) => gray[hu + 32768] & 255), [0, 0, 128, 255, 255]);
});

const BALL = { name: "ball", label_id: 3, unknown_to: [] };

test("the same key at the same place goes through the networks and back to the own mask", () => {
  const takeover = new Takeover(null, "case", ["a", "b"]);
  const steps = [{}, {}];
  assert.deepEqual(takeover.turn(BALL, "organ", null), { name: "a", again: false });
  takeover.took(steps[0]);
  assert.deepEqual(takeover.turn(BALL, "organ", steps[0]), { name: "b", again: true });
  takeover.took(steps[1]);
  assert.deepEqual(takeover.turn(BALL, "organ", steps[1]), { name: null, again: true });
  assert.deepEqual(takeover.turn(BALL, "organ", null), { name: "a", again: false });
});

test("painting or another place in between starts with the first network again", () => {
  const takeover = new Takeover(null, "case", ["a", "b"]);
  const taken = {};
  takeover.turn(BALL, "organ", null);
  takeover.took(taken);
  assert.deepEqual(takeover.turn(BALL, "organ", {}), { name: "a", again: false });
  takeover.took(taken);
  assert.deepEqual(takeover.turn(BALL, "component 3", taken), { name: "a", again: false });
});

test("a network that changed nothing is passed over without undoing anything", () => {
  const takeover = new Takeover(null, "case", ["a", "b"]);
  takeover.turn(BALL, "organ", null);
  takeover.took(null);
  assert.deepEqual(takeover.turn(BALL, "organ", {}), { name: "b", again: false });
});

test("a network that does not know the organ has no turn, is not compared, and the table says why", async () => {
  const takeover = new Takeover(null, "case", ["a", "b"]);
  const cube = { name: "cube", label_id: 7, unknown_to: ["a"] };
  takeover.labelMap = async (name) => (assert.equal(name, "b"), new Packed(Uint8Array.of(7, 0)));
  assert.deepEqual(takeover.turn(cube, "organ", null), { name: "b", again: false });
  const rows = await takeover.compare(Uint8Array.of(1, 1), cube, null);
  assert.deepEqual(rows.map((row) => [row.name, row.voxels]), [["b", 1]]);
  const table = takeTable(rows, { organ: cube, hasComponent: false });
  assert.match(table, /data-take-from="b"/);
  assert.doesNotMatch(table, /data-take-from="a"/);
  assert.match(table, /a<\/td><td colspan="3">was not trained on cube/);
});

test("without stored attention a component's region is its box", () => {
  const component = { peak: [1, 0, 0], box: [[1, 3], [0, 1], [0, 1]] };
  assert.deepEqual([...componentRegion({ dims: [4, 2, 1] }, null, component)], [1, 2]);
  assert.deepEqual([...componentRegion({ dims: [4, 2, 1] }, Uint8Array.from([0, 1, 0, 0, 0, 0, 0, 0]), component)].sort(), [0, 1, 2, 5]);
});

test("reviewed is a share of the score, not of the number", () => {
  const components = [{ score: 80, verdict: "fixed" }, { score: 15, seen: true }, { score: 5 }];
  assert.deepEqual(reviewedShare(components), [0.8, 0.95]);
  assert.deepEqual(reviewedShare([]), [1, 1]);
});

test("what people typed is text, not HTML", () => {
  const nasty = '<img src=x onerror="alert(1)">';
  assert.ok(!commentList([{ text: nasty, user: nasty, created: "2026-01-01T00:00:00Z" }]).includes("<img"));
  assert.ok(!historyList([{ revision_id: 1, kind: "edit", name: nasty, user: nasty, created: "2026-01-01T00:00:00Z", voxels: 1 }], {}).includes("<img"));
});
