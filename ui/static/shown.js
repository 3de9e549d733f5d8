// Keeps bars and lists true to the editor's state; changes nothing but what is shown.

import { RADII } from "./keys.js";
import { commentList, componentList, organList, pretty, reviewedShare } from "./panels.js";
import { countVoxels } from "./runs.js";

export function showTools(editor) {
  for (const button of editor.root.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === editor.tool);
  for (const button of editor.root.querySelectorAll("[data-toggle]")) {
    const what = button.dataset.toggle;
    button.setAttribute("aria-pressed", Boolean(what in editor ? editor[what] : editor.scene?.show[what] ?? true));
  }
  editor.parts.radius.value = RADII.indexOf(editor.radius);
  editor.parts["radius-mm"].textContent = `${editor.radius} mm`;
  [editor.parts["gate-low"].value, editor.parts["gate-high"].value] = editor.gateRange;
  editor.parts.opacity.value = editor.scene?.opacity ?? 0.22;
  editor.root.dataset.tool = editor.tool;
}

export function showCriteria(editor) {
  const shown = editor.criteria.reduce((bits, name, n) => (editor.hiddenCriteria.has(name) ? bits : bits | (1 << n)), 0);
  const all = editor.hiddenCriteria.size === 0;
  editor.scene.flagBits = !editor.own ? 0 : all ? 255 : shown || 256;
  editor.parts.criteria.innerHTML = editor.criteria.map((name, n) => `<button data-criterion="${n}" aria-pressed="${editor.own && !editor.hiddenCriteria.has(name)}" title="Attention by ${pretty(name)} (Alt+${n + 1})">${pretty(name)}</button>`).join("");
}

export function showSteps(editor) {
  const { past, future } = editor.active.edit;
  editor.root.querySelector('[data-do="undo"]').disabled = !past.length;
  editor.root.querySelector('[data-do="redo"]').disabled = !future.length;
  const last = past.at(-1);
  if (last) editor.note(`${past.length} step${past.length > 1 ? "s" : ""}, last: ${pretty(last.name)} (${countVoxels(last.runs)} voxels)`);
}

/** The worst state of all organs' outboxes. */
export function showSave(editor) {
  const states = [...editor.states.values()];
  const worst = ["conflict", "refused", "offline", "saving", "unsaved", "saved"].map((status) => states.find((state) => state.status === status)).find(Boolean);
  if (!worst) return;
  const revision = editor.active?.outbox.revision ?? 0;
  const kept = editor.drafts?.durable ? "; kept in this browser" : "";
  const texts = {
    saved: `Saved · revision ${revision}`, unsaved: "Unsaved", saving: "Saving …", offline: `Server away, trying again${kept}`,
    refused: `Not saved${kept}: ${worst.detail}`, conflict: "Conflict: a newer label exists",
  };
  Object.assign(editor.parts.save, { textContent: texts[worst.status], title: texts[worst.status] });
  editor.parts.save.dataset.state = worst.status;
  if (worst.status === "saved") {
    showOrgans(editor);
    if (editor.history && editor.history.at(-1)?.revision_id !== revision) editor.showHistory().catch(() => {});
  }
}

export function showCase(editor) {
  const { info } = editor;
  editor.parts.case.textContent = info.case_id;
  const size = `${info.shape.join(" × ")}, ${info.spacing.map((s) => s.toFixed(2)).join(" × ")} mm`;
  editor.parts["case-note"].textContent = editor.readOnly ? `read only: ${editor.readOnly}` : size;
  editor.parts["case-note"].title = editor.parts["case-note"].textContent;
  const { review, reviewer } = info.item;
  editor.parts.alert.hidden = review !== "rejected";
  editor.parts.alert.textContent = `Sent back by ${reviewer}: ${info.review_note}`;
  editor.root.dataset.readOnly = Boolean(editor.readOnly);
  editor.root.querySelector('[data-do="submit"]').textContent = info.item.state === "submitted" ? "Reopen" : "Submit";
  showOrgans(editor);
  showComponents(editor);
  showTools(editor);
  showCriteria(editor);
}

export function showOrgans(editor) {
  const { organs } = editor.info;
  const revisions = organs.map((organ) => editor.states.get(organ.name)?.outbox.revision ?? organ.rev);
  const waiting = new Set([...editor.states.values()].filter((state) => state.outbox.pending).map((state) => state.organ.name));
  editor.parts.organs.innerHTML = organList(organs, { active: editor.organ, revisions, hidden: editor.scene.hidden, waiting });
}

export function showComponents(editor) {
  const { components, parts } = editor;
  const [reviewed, seen] = reviewedShare(components);
  parts.left.textContent = `${components.filter((c) => !c.verdict).length} of ${components.length} open`;
  parts.reviewed.textContent = components.length ? `${Math.round(100 * reviewed)} % reviewed, ${Math.round(100 * seen)} % seen` : "none in this case";
  parts["reviewed-bar"].style.width = `${100 * reviewed}%`;
  parts["seen-bar"].style.width = `${100 * seen}%`;
  const colors = Object.fromEntries(editor.info.organs.map((organ) => [organ.name, organ.color]));
  parts.components.innerHTML = componentList(components, { current: editor.current, colors });
  parts.components.querySelector('[aria-current="true"]')?.scrollIntoView({ block: "nearest" });
}

export async function showComments(editor) {
  const { comments } = await editor.client.json("GET", ["cases", editor.caseId, "comments"]);
  editor.parts.comments.innerHTML = commentList(comments);
  editor.root.querySelector('[data-tab="comments"]').textContent = comments.length ? `Comments (${comments.length})` : "Comments";
}

export function showTab(editor, tab = editor.tab) {
  editor.tab = tab;
  for (const button of editor.root.querySelectorAll("[data-tab]")) button.setAttribute("aria-selected", button.dataset.tab === tab);
  for (const panel of editor.root.querySelectorAll("[data-panel]")) panel.hidden = panel.dataset.panel !== tab;
  return editor.showHistory();
}
