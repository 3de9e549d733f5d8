// The mouse over the planes: which tool, window, pan, zoom or slice it means, and what lies under it.

import { toWorld } from "./nifti.js";
import { pretty } from "./panels.js";
import { TOOLS } from "./tools.js";

export function bindPlanes(editor) {
  for (const plane of Object.values(editor.planes)) {
    const element = plane.element;
    const on = (type, handler) => element.addEventListener(type, (event) => editor.scene && editor.ready && handler(event, ...offset(event, element)), { passive: false });
    on("pointerdown", (event, x, y) => pointerDown(editor, plane, event, x, y));
    on("pointermove", (event, x, y) => pointerMove(editor, plane, event, x, y));
    on("pointerup", () => pointerUp(editor, plane));
    on("pointercancel", () => pointerUp(editor, plane));
    on("pointerleave", () => showRing(editor, plane, null));
    on("wheel", (event, x, y) => wheel(editor, plane, event, x, y));
    on("dblclick", () => editor.tool === "cursor" && editor.enlarge(plane.name));
    on("contextmenu", (event) => event.preventDefault());
  }
}

function pointerDown(editor, plane, event, x, y) {
  editor.root.focus({ preventScroll: true });
  editor.stopwatch.touch();
  event.preventDefault();
  if (editor.drag) return; // a second button during a stroke
  plane.element.setPointerCapture(event.pointerId);
  editor.lastPlane = plane;
  const at = plane.toVoxel(x, y);
  const kind = event.button === 2 ? "window" : event.button === 1 || event.shiftKey ? "pan" : editor.tool === "cursor" || event.altKey ? "cursor" : "tool";
  if (kind === "tool" && !editor.editable) return;
  const value = (editor.tool === "erase") !== (event.ctrlKey || event.metaKey) ? 0 : 1;
  editor.drag = { kind, x, y, at, value, tool: TOOLS[editor.tool], start: { ...editor.scene.window } };
  if (kind === "cursor") editor.moveCursor(at);
  if (kind === "tool") editor.drag.tool.begin(editor, plane, at, value);
}

function pointerMove(editor, plane, event, x, y) {
  editor.lastPlane = plane;
  const at = plane.toVoxel(x, y);
  showReadout(editor, at);
  const { drag } = editor;
  showRing(editor, plane, ["cursor", "lasso", "fill"].includes(editor.tool) || (drag && drag.kind !== "tool") ? null : { x, y });
  if (!drag) return;
  editor.stopwatch.touch();
  if (drag.kind === "cursor") editor.moveCursor(at);
  else if (drag.kind === "tool") drag.tool.move(editor, plane, at, drag.value, drag.at);
  else if (drag.kind === "pan") { plane.pan(x - drag.x, y - drag.y); editor.draw(); }
  else {
    editor.scene.setWindow(drag.start.width + (x - drag.x) * 2, drag.start.level + (y - drag.y) * 2);
    editor.parts.window.value = "";
    editor.draw();
  }
  if (drag.kind !== "window") Object.assign(drag, { at, x, y });
}

function pointerUp(editor, plane) {
  const { drag } = editor;
  editor.drag = null;
  if (drag?.kind === "tool") drag.tool.end(editor, plane, drag.value);
}

function wheel(editor, plane, event, x, y) {
  event.preventDefault();
  editor.stopwatch.touch();
  if (event.ctrlKey || event.metaKey) editor.zoom(plane, event.deltaY < 0 ? 1.2 : 1 / 1.2, x, y);
  else if (editor.drag?.kind !== "tool") editor.scroll(plane, Math.sign(event.deltaY)); // a stroke stays in its slice
}

export function showRing(editor, plane, at) {
  plane.ring = at && { x: at.x, y: at.y, radius: editor.radius, erase: editor.tool === "erase" };
  plane.drawTop();
}

function showReadout(editor, position) {
  const voxel = editor.scene.clamp(position);
  const inside = position.every((p, a) => p > -0.5 && p < editor.scene.dims[a] - 0.5);
  const index = editor.scene.index(voxel);
  const id = editor.scene.labelAt(index);
  const organ = editor.info.organs.find((o) => o.label_id === id)?.name ?? "";
  const mm = toWorld(editor.scene.affine, voxel).map((value) => value.toFixed(1)).join(", ");
  editor.parts.readout.textContent = inside ? `${editor.scene.data[index]} HU   voxel ${voxel.join(", ")}   RAS ${mm} mm   ${pretty(organ)}` : "";
}

function offset(event, element) {
  const box = element.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}
