// Buttons, fields and keys: each asks the editor for one thing.

import { RADII, actionOf, isTextField } from "./keys.js";
import { showTab, showTools } from "./shown.js";

export function bindControls(editor) {
  const { root, parts } = editor;
  root.addEventListener("keydown", (event) => key(editor, event));
  root.addEventListener("click", (event) => click(editor, event));
  parts.radius.addEventListener("input", () => editor.setRadius(RADII[parts.radius.value]));
  parts.opacity.addEventListener("input", () => editor.scene && ((editor.scene.opacity = Number(parts.opacity.value)), editor.draw()));
  parts.window.addEventListener("change", () => editor.preset(Number(parts.window.value)));
  for (const [n, part] of [parts["gate-low"], parts["gate-high"]].entries()) part.addEventListener("change", () => { editor.gateRange[n] = Number(part.value); editor.gate = true; showTools(editor); });
  window.addEventListener("beforeunload", (event) => { if (editor.waiting) event.preventDefault(); });
  window.addEventListener("online", () => editor.save());
  document.addEventListener("visibilitychange", () => document.hidden && editor.ready && (editor.save(), editor.sendTime()));
}

function key(editor, event) {
  if (!editor.parts.ask.hidden || editor.drag?.kind === "tool") return;
  const action = actionOf(event, { open: editor.ready });
  if (!action) return;
  editor.stopwatch.touch();
  event.preventDefault();
  event.stopPropagation();
  Promise.resolve(action(editor)).catch((error) => editor.note(error.message));
}

function click(editor, event) {
  const { dataset: data = {} } = event.target.closest("button, li") ?? {};
  const always = { help: () => editor.toggleHelp(), next: () => editor.openNext() };
  const inCase = {
    undo: () => editor.undo(), redo: () => editor.undo(true), submit: () => editor.submit(), takes: () => editor.showTakes(),
    skip: () => editor.setAside("skip"), flag: () => editor.setAside("flag"), comment: () => editor.addComment(),
  };
  const action = always[data.do] ?? (editor.ready ? inCase[data.do] ?? clicked(editor, data) : data.tab && (() => showTab(editor, data.tab)));
  if (action) {
    editor.stopwatch.touch();
    Promise.resolve(action()).catch((error) => editor.note(error.message));
  }
  if (!isTextField(event.target) && !event.target.closest(".ar-ask")) editor.root.focus({ preventScroll: true });
}

function clicked(editor, data) {
  if (data.tool) return () => editor.setTool(data.tool);
  if (data.toggle) return () => editor.toggle(data.toggle);
  if (data.criterion) return () => editor.toggleCriterion(Number(data.criterion));
  if (data.propose) return () => editor.propose(data.propose);
  if (data.copy) return () => editor.copySlice(Number(data.copy));
  if (data.take) return () => editor.takeNext(data.take);
  if (data.takeFrom) return () => editor.take(data.takeFrom, data.where);
  if (data.tab) return () => showTab(editor, data.tab);
  if (data.revert) return () => editor.revert(Number(data.revert));
  if (data.revision) return () => editor.compareWith(Number(data.revision));
  if (data.says) return () => editor.goTo(Number(data.component)).then(() => editor.judge(data.says));
  if (data.component) return () => editor.goTo(Number(data.component));
  if (data.eye) return () => editor.hide(Number(data.eye));
  if (data.organ) return () => editor.activate(data.organ);
  return null;
}
