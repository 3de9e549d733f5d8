// Every key of the editor: what it is called in the help, and what it does. `run` gets the editor.

export const WINDOWS = [["Abdomen", 400, 40], ["Narrow", 150, 60], ["Lung", 1500, -600], ["Bone", 1800, 400], ["Vessel", 600, 150]];
export const RADII = [0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40];
const resize = (step) => (e) => e.setRadius(RADII[Math.max(0, Math.min(RADII.length - 1, RADII.indexOf(e.radius) + step))]);
const scroll = (steps) => (e) => e.scroll(e.lastPlane ?? e.planes.axial, steps);
const tool = (name) => (e) => e.setTool(name);
const toggle = (what) => (e) => e.toggle(what);
const digits = (prefix, run) => Object.fromEntries(Array.from({ length: 9 }, (_, n) => [`${prefix}${n + 1}`, (e) => run(e, n)]));

/** [title, [[keys as shown, what they do, {key: run}], ...]] */
export const KEYS = [
  ["Errors", [
    ["N / P", "next, previous error", { n: (e) => e.step(1), p: (e) => e.step(-1) }],
    ["K / F / J", "left as it is, fixed, not an error; and on to the next", { k: (e) => e.judge("accepted"), f: (e) => e.judge("fixed"), j: (e) => e.judge("not_an_error") }],
    ["T", "take this error's voxels from the next network; again: from another", { t: (e) => e.takeNext("component") }],
    ["Shift+T", "take the whole organ from the next network", { "shift+t": (e) => e.takeNext("organ") }],
    ["U", "networks compared with the mask", { u: (e) => e.showTakes() }],
  ]],
  ["Tools", [
    ["B / E", "brush, eraser; Ctrl while painting is the other one", { b: tool("brush"), e: tool("erase") }],
    ["L", "lasso; Ctrl erases", { l: tool("lasso") }],
    ["G", "fill connected voxels of like HU; Ctrl removes the piece of the mask", { g: tool("fill") }],
    ["W", "grow from strokes: inside, with Ctrl outside; Enter grows, Esc forgets", { w: tool("seeds"), Enter: (e) => e.enter(), Escape: (e) => e.escape() }],
    ["V", "cursor: a click sets the crosshair", { v: tool("cursor") }],
    ["[ / ]", "brush size", { "[": resize(-1), "]": resize(1) }],
    ["D, H, X", "flat or 3D, HU gate, protect other organs", { d: toggle("sphere"), h: toggle("gate"), x: toggle("protect") }],
    ["Z, Y", "undo, redo", { z: (e) => e.undo(), y: (e) => e.undo(true), "ctrl+z": (e) => e.undo(), "ctrl+y": (e) => e.undo(true), "ctrl+shift+z": (e) => e.undo(true) }],
  ]],
  ["Mask", [
    [", / .", "copy from the slice before, after", { ",": (e) => e.copySlice(-1), ".": (e) => e.copySlice(1) }],
    ["I", "interpolate between painted slices", { i: (e) => e.propose("interpolate") }],
    ["+ / -", "grow, shrink", { "+": (e) => e.propose("grow"), "=": (e) => e.propose("grow"), "-": (e) => e.propose("shrink") }],
    ["Shift+M, Shift+H", "smooth, fill holes", { "shift+m": (e) => e.propose("smooth"), "shift+h": (e) => e.propose("fill_holes") }],
    ["Shift+L, Shift+R", "keep the largest piece, remove small ones", { "shift+l": (e) => e.propose("keep_largest"), "shift+r": (e) => e.propose("remove_small") }],
  ]],
  ["View", [
    ["1 to 9", "active organ", digits("", (e, n) => e.activateNumber(n))],
    ["Space, O, C", "labels, fill, crosshair", { " ": toggle("labels"), o: toggle("fill"), c: toggle("crosshair") }],
    ["A, Q", "attention, of the active organ only", { a: toggle("attention"), q: toggle("own") }],
    ["Alt+1 to 9", "one criterion of the attention", digits("alt+", (e, n) => e.toggleCriterion(n))],
    [`Shift+1 to ${WINDOWS.length}`, "window presets; right drag: window and level", digits("shift+", (e, n) => e.preset(n))],
    ["Arrows, wheel", "slice; Page keys: ten", { ArrowUp: scroll(1), ArrowRight: scroll(1), ArrowDown: scroll(-1), ArrowLeft: scroll(-1), PageUp: scroll(10), PageDown: scroll(-10) }],
    ["Ctrl+wheel", "zoom; middle drag or Shift+drag pans", {}],
    ["M, R", "one plane large (or double-click), reset the view", { m: (e) => e.enlarge((e.lastPlane ?? e.planes.axial).name), r: (e) => e.resetView() }],
  ]],
  ["Case", [
    ["S", "send what is not sent", { s: (e) => e.save(), "ctrl+s": (e) => e.save() }],
    ["Ctrl+Enter, Shift+N", "submit, next case", { "ctrl+Enter": (e) => e.submit(), "shift+n": (e) => e.openNext() }],
    ["?", "this list", { "?": (e) => e.toggleHelp() }],
  ]],
];

const ACTIONS = new Map(KEYS.flatMap(([, rows]) => rows.flatMap(([, , keys]) => Object.entries(keys))));
const WITHOUT_CASE = new Set(["?", "shift+n", "Escape", "Enter"]);

/** The action a key event asks for, or null; none in text fields, and none but a few while no case is open. */
export function actionOf(event, { open = true } = {}) {
  if (isTextField(event.target)) return null;
  if (event.target.tagName === "BUTTON" && [" ", "Enter"].includes(event.key)) return null; // reached by Tab: it presses the button
  const name = keyName(event);
  return open || WITHOUT_CASE.has(name) ? ACTIONS.get(name) ?? null : null;
}

/** "ctrl+shift+z"; Shift counts only with letters and digits, since a keyboard may need it for "?" or "+". */
export function keyName({ key, code = "", shiftKey, ctrlKey, metaKey, altKey }) {
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(code)?.[1]; // event.key of shift+digit depends on the keyboard
  const plain = digit ?? (key.length === 1 ? key.toLowerCase() : key);
  const shifted = shiftKey && (digit || plain !== plain.toUpperCase());
  return `${ctrlKey || metaKey ? "ctrl+" : ""}${altKey ? "alt+" : ""}${shifted ? "shift+" : ""}${plain}`;
}

export function isTextField(target) {
  if (target.isContentEditable || ["TEXTAREA", "SELECT"].includes(target.tagName)) return true;
  return target.tagName === "INPUT" && !["range", "checkbox", "radio", "button"].includes(target.type);
}
