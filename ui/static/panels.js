// What stands around the planes: HTML of the bars and lists. No state of its own; the editor fills it.

import { KEYS, RADII, WINDOWS } from "./keys.js";

const VERDICTS = [["accepted", "✓", "Left as it is (K)"], ["fixed", "✎", "Fixed (F)"], ["not_an_error", "✗", "Not an error (J)"]];

const button = (attributes, text, key = "", title = "") => `<button ${attributes} title="${title || text}${key && ` (${key})`}">${text}${key && `<kbd>${key}</kbd>`}</button>`;
const rail = (title, content) => `<section><h4>${title}</h4>${content}</section>`;

export const template = () => `
<div class="ar-bar" role="toolbar" aria-label="View and case">
  <span class="ar-case"><b data-id="case">No case</b><small data-id="case-note"></small></span>
  <label class="ar-field"><select data-id="window" title="Window (Shift+1 to ${WINDOWS.length})">${WINDOWS.map(([name, width, level], n) => `<option value="${n}">${name} ${width}/${level}</option>`).join("")}<option value="" hidden>own window</option></select></label>
  <div class="ar-group">${button('data-toggle="labels"', "Labels", "", "Labels (Space)")}${button('data-toggle="fill"', "Fill", "", "Fill inside the outlines (O)")}</div>
  <label class="ar-field" title="Opacity of the labels"><input type="range" data-id="opacity" min="0" max="0.8" step="0.02" aria-label="Opacity of the labels"></label>
  <div class="ar-group">${button('data-toggle="attention"', "Attention", "", "Attention (A)")}${button('data-toggle="own"', "This organ", "", "Attention of the active organ only (Q)")}</div>
  <span class="ar-space"></span>
  <span class="ar-save" data-id="save" data-state="idle" role="status"></span>
  <div class="ar-group">${button('data-do="skip"', "Skip")}${button('data-do="flag"', "Flag")}</div>
  <div class="ar-group">${button('data-do="submit" class="ar-primary"', "Submit", "", "Hand in this case (Ctrl+Enter)")}${button('data-do="next"', "Next case", "", "Next case (Shift+N)")}${button('data-do="help"', "?", "", "Keys (?)")}</div>
</div>
<div class="ar-body">
  <nav class="ar-rail" aria-label="Tools">
    ${rail("Tools", `<div class="ar-grid">${[["brush", "Brush", "B"], ["erase", "Eraser", "E"], ["lasso", "Lasso", "L"], ["fill", "Fill", "G"], ["seeds", "Grow", "W"], ["cursor", "Cursor", "V"]].map(([tool, text, key]) => button(`data-tool="${tool}"`, text, key)).join("")}</div>
    <label class="ar-radius" title="Brush radius ([ and ])"><input type="range" data-id="radius" min="0" max="${RADII.length - 1}" step="1" aria-label="Brush radius"><output data-id="radius-mm"></output></label>
    <div class="ar-grid">${button('data-toggle="sphere"', "3D", "D", "Sphere and 3D fill")}${button('data-toggle="protect"', "Protect", "X", "Protect other organs")}</div>
    <div class="ar-gate">${button('data-toggle="gate"', "HU", "H", "Change only voxels in this HU range")}<input type="number" data-id="gate-low" aria-label="Lowest HU"><input type="number" data-id="gate-high" aria-label="Highest HU"></div>
    <div class="ar-grid">${button('data-do="undo"', "Undo", "Z")}${button('data-do="redo"', "Redo", "Y")}</div>`)}
    ${rail("Take it from", `<div class="ar-grid one">${button('data-take="component"', "This error", "T", "Take this error's voxels from the next network")}${button('data-take="organ"', "Whole organ", "⇧T", "Take the whole organ from the next network")}${button('data-do="takes"', "Compare", "U", "Networks compared with the mask")}</div>`)}
    ${rail("Mask", `<div class="ar-grid">${[["interpolate", "Between", "I", "Interpolate between painted slices"], ["fill_holes", "Holes", "⇧H", "Fill holes"], ["grow", "Grow", "+"], ["shrink", "Shrink", "−"], ["smooth", "Smooth", "⇧M"], ["keep_largest", "Largest", "⇧L", "Keep the largest piece"]].map(([tool, text, key, title]) => button(`data-propose="${tool}"`, text, key, title)).join("")}
    ${button('data-copy="-1"', "Copy ◂", ",", "Copy from the slice before")}${button('data-copy="1"', "Copy ▸", ".", "Copy from the slice after")}</div>
    <div class="ar-grid one">${button('data-propose="remove_small"', "Drop small", "⇧R", "Remove small pieces")}</div>
    <label class="ar-number">by <input type="number" data-id="mm" value="2" min="0.5" max="30" step="0.5"> mm</label>
    <label class="ar-number">below <input type="number" data-id="ml" value="1" min="0.01" max="1000" step="any"> ml</label>
    <div class="ar-grid one">${button('data-toggle="boxed"', "Only in the box", "", "Mask operations change only the dashed box of the error")}</div>`)}
  </nav>
  <div class="ar-planes" data-large="">
    <div class="ar-plane" data-plane="axial"></div><div class="ar-plane" data-plane="coronal"></div><div class="ar-plane" data-plane="sagittal"></div>
    <div class="ar-takes" data-id="takes" hidden></div>
    <div class="ar-message" data-id="message"><p data-id="message-text">Choose a case in the queue.</p><div data-id="message-buttons"></div></div>
    <div class="ar-ask" data-id="ask" role="dialog" hidden></div>
  </div>
  <aside class="ar-side">
    <section class="ar-alert" data-id="alert" hidden></section>
    <section class="ar-organs"><header>Organs</header><ul data-id="organs"></ul></section>
    <section class="ar-tabbed">
      <div class="ar-tabs" role="tablist">${[["errors", "Errors"], ["history", "History"], ["comments", "Comments"]].map(([tab, text]) => `<button role="tab" data-tab="${tab}">${text}</button>`).join("")}</div>
      <div data-panel="errors" class="ar-errors"><header><span data-id="left"></span><small data-id="reviewed"></small></header>
        <div class="ar-progress" title="Share of the attention that has a verdict, and that was looked at"><i data-id="seen-bar"></i><i data-id="reviewed-bar"></i></div><div class="ar-criteria" data-id="criteria"></div><ol data-id="components"></ol></div>
      <div data-panel="history" hidden><ol data-id="history"></ol></div>
      <div data-panel="comments" hidden><ol data-id="comments"></ol><textarea data-id="comment" rows="3" placeholder="A comment on this case" maxlength="2000"></textarea><button data-do="comment">Add</button></div>
    </section>
  </aside>
</div>
<footer class="ar-foot"><span data-id="readout"></span><span class="ar-space"></span><span data-id="step"></span></footer>
<div class="ar-help" data-id="help" hidden>${KEYS.map(([title, rows]) => `<section><h3>${title}</h3><dl>${rows.map(([keys, what]) => `<dt>${keys}</dt><dd>${what}</dd>`).join("")}</dl></section>`).join("")}</div>`;

export function organList(organs, { active, revisions, hidden, waiting }) {
  return organs.map((organ, n) => {
    const isHidden = hidden[organ.label_id];
    return `<li data-organ="${organ.name}" aria-current="${organ === active}" class="${organ.queried ? "queried" : ""}">
      <i style="background:${organ.color}"></i><kbd>${n < 9 ? n + 1 : ""}</kbd><span>${pretty(organ.name)}</span>
      <small title="revision">${waiting.has(organ.name) ? "↑" : ""}${revisions[n] ? `r${revisions[n]}` : ""}</small>
      <button data-eye="${organ.label_id}" aria-pressed="${!isHidden}" title="Show or hide">${isHidden ? "○" : "●"}</button></li>`;
  }).join("");
}

export function componentList(components, { current, colors }) {
  return components.map((c, n) => `
    <li data-component="${n}" aria-current="${n === current}" data-verdict="${c.verdict ?? ""}">
      <i style="background:${colors[c.organ]}"></i><b>${c.index}</b><span>${pretty(c.organ)} <em>${milliliters(c.volume_mm3)}</em>${c.error && c.error !== "unknown" ? ` <mark title="What kind of error this seems to be">${pretty(c.error)}</mark>` : ""}
      <small>${pretty(c.reason)}${c.criteria.length > 1 ? ` + ${c.criteria.filter((name) => name !== c.reason).map(pretty).join(", ")}` : ""}</small></span>
      <div>${VERDICTS.map(([v, sign, title]) => `<button data-component="${n}" data-says="${v}" aria-pressed="${c.verdict === v}" title="${title}">${sign}</button>`).join("")}</div></li>`).join("");
}

/** The organ's steps, newest first; `shown` is the revision being compared. */
export function historyList(steps, { shown, readOnly }) {
  const rows = [...steps].reverse().map((s) => `
    <li data-revision="${s.revision_id}" aria-current="${s.revision_id === shown}" title="Outline the mask as it was before this step">
      <b>${s.revision_id}</b><span>${s.kind === "edit" ? "" : `<em>${s.kind}</em> `}${escapeHtml(pretty(s.name || "edit"))}
      <small>${escapeHtml(s.user)}, ${clock(s.created)}, ${s.voxels} voxels</small></span>
      ${readOnly ? "" : `<button data-revert="${s.revision_id - 1}" title="Bring back the mask before this step">revert</button>`}</li>`);
  return rows.join("") || "<li>Nobody has changed this organ.</li>";
}

export function commentList(comments) {
  return comments.map((c) => `<li><span>${escapeHtml(c.text)}<small>${escapeHtml(c.user)}, ${clock(c.created)}</small></span></li>`).join("") || "<li>No comment yet.</li>";
}

/** The networks beside each other, each with two ways to take it; those that do not know the organ are named, and offer nothing. */
export function takeTable(rows, { organ, hasComponent }) {
  const strangers = organ.unknown_to.map((name) => `
    <tr class="ar-soft"><td>${name}</td><td colspan="3">was not trained on ${pretty(organ.name)}: it has no opinion to take</td></tr>`);
  return `<header>${pretty(organ.name)}: take it from</header><table><tr><th></th><th>Dice to the mask</th><th>differs</th><th></th></tr>${rows.map((row) => `
    <tr><td>${row.name}</td><td>${row.dice.toFixed(3)}</td><td>${row.voxels} voxels</td><td>
    ${hasComponent ? `<button data-take-from="${row.name}" data-where="component">this error (${row.inside})</button>` : ""}
    <button data-take-from="${row.name}" data-where="organ">organ</button></td></tr>`).join("")}${strangers.join("")}</table>`;
}

/** [share with a verdict, share seen or with a verdict] of the summed scores; 1 where there are none. */
export function reviewedShare(components) {
  const total = components.reduce((sum, c) => sum + c.score, 0);
  const share = (isDone) => (total ? components.filter(isDone).reduce((sum, c) => sum + c.score, 0) / total : 1);
  return [share((c) => c.verdict), share((c) => c.seen || c.verdict)];
}

export function pretty(name) {
  return name.replaceAll("_", " ");
}

export function milliliters(mm3) {
  return `${(mm3 / 1000).toFixed(mm3 < 1000 ? 2 : 1)} ml`;
}

export function escapeHtml(text) {
  return String(text).replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign]);
}

function clock(created) {
  const time = new Date(created);
  return time.toDateString() === new Date().toDateString() ? time.toTimeString().slice(0, 5) : `${time.toISOString().slice(0, 10)} ${time.toTimeString().slice(0, 5)}`;
}
