// What the mouse does with each tool. A tool gets the editor, the plane, the event and voxel coordinates; `value` is 1 to add, 0 to remove.

import { eachWithin } from "./edit.js";
import { flood, polygonVoxels } from "./region.js";

const FILL_REACH_MM = 60; // a fill goes no farther from where it was clicked
const FILL_TOLERANCE_HU = 40; // without a HU gate

const named = (editor, value, add, remove) => `${value ? add : remove} ${editor.organ.name}`;

const brush = {
  begin(editor, plane, at, value) {
    editor.active.edit.begin(named(editor, value, "paint", "erase"));
    brush.move(editor, plane, at, value, at);
  },
  move(editor, plane, at, value, from) {
    const { radius, sphere } = editor;
    const how = { radius, value, across: plane.w.axis, sphere, blocked: editor.blocked(value) };
    if (editor.active.edit.paint(from, at, how)) editor.drawSoon([plane]);
    editor.active.keepStroke();
  },
  end(editor) {
    editor.made(editor.active.edit.end());
  },
};

const lasso = {
  begin(editor, plane, at) {
    editor.scene.lasso = [at];
    plane.drawing = true;
  },
  move(editor, plane, at) {
    editor.scene.lasso.push(at);
    plane.drawTop();
  },
  end(editor, plane, value) {
    const corners = editor.scene.lasso;
    editor.scene.lasso = [];
    plane.drawing = false;
    const { edit } = editor.active;
    editor.made(edit.set(named(editor, value, "lasso", "lasso erase"), polygonVoxels(editor.scene, corners, plane.w.axis), value, editor.blocked(value)));
  },
};

const fill = {
  begin(editor, plane, at, value) {
    const { scene, active: { edit } } = editor;
    const seed = scene.clamp(at);
    const around = scene.dims.map((_, a) => [seed[a] - FILL_REACH_MM / scene.spacing[a], seed[a] + FILL_REACH_MM / scene.spacing[a]].map(Math.round));
    const blocked = editor.blocked(value);
    const inside = value ? fillable(editor, seed) : (voxel) => edit.mask[voxel] === 1;
    const { voxels, complete } = flood(scene, seed, (voxel) => inside(voxel) && !blocked?.(voxel), {
      flat: editor.sphere ? null : plane.w.axis, box: value ? around : null,
    });
    editor.made(edit.set(named(editor, value, "fill", "remove piece of"), voxels, value));
    if (!complete) editor.note("The fill was stopped: it would have leaked far. Narrow the HU range.");
  },
  move() {},
  end() {},
};

function fillable(editor, seed) {
  const { scene: { data }, gate, gateRange } = editor;
  const hu = data[editor.scene.index(seed)];
  const [low, high] = gate ? gateRange : [hu - FILL_TOLERANCE_HU, hu + FILL_TOLERANCE_HU];
  return (voxel) => data[voxel] >= low && data[voxel] <= high;
}

const seeds = {
  begin(editor, plane, at, value) {
    seeds.move(editor, plane, at, value, at);
  },
  move(editor, plane, at, value, from) {
    eachWithin(editor.scene, from, at, { radius: editor.radius, across: plane.w.axis }, (voxel) => editor.scene.seeds.set(voxel, value));
    editor.drawSoon([plane]);
  },
  end(editor) {
    editor.note(`${editor.scene.seeds.size} seed voxels; Ctrl marks what is outside, Enter grows the region, Esc forgets`);
  },
};

export const TOOLS = { brush, erase: brush, lasso, fill, seeds };
