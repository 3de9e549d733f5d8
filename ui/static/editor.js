// The editor: loads a case, turns mouse and keys into strokes and views, and keeps the page's panels true.

import { Client, Saver, Stopwatch } from "./client.js";
import { OrganEdit, bake, protectedIds } from "./edit.js";
import { parseNifti, toWorld } from "./nifti.js";
import { Plane, Scene } from "./view.js";

const WINDOWS = [["Abdomen", 400, 40], ["Narrow", 150, 60], ["Lung", 1500, -600], ["Bone", 1800, 400], ["Vessel", 600, 150]];
const RADII = [0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40];
const LEASE_MS = 60000;
const REASONS = { accepted: "doubtful, left as it is", fixed: "fixed", not_an_error: "not an error" };

const HELP = [
  ["B / E", "brush / eraser (hold Ctrl while painting: the other one)"], ["V", "cursor tool: click sets the crosshair"], ["[ ]", "brush size"],
  ["D", "flat disc or 3D sphere"], ["X", "protect other organs"], ["Z or Ctrl+Z, Y", "undo, redo"],
  ["N / P", "next / previous attention component"], ["K / F / J", "component: left as it is / fixed / not an error"],
  ["1 to 9", "active organ"], ["Space", "labels on or off"], ["A, Q", "attention on or off, of the active organ only"], ["O", "outline, outline with fill"], ["C", "crosshair"],
  ["Shift+1 to 5", "window presets"], ["Right drag", "window and level"], ["Wheel, arrows", "slice"], ["Ctrl+wheel", "zoom"],
  ["Middle drag, Shift+drag", "pan"], ["M or double-click", "one plane large"], ["R", "reset zoom and pan"], ["S", "save now"], ["?", "this list"],
];

const TEMPLATE = `
<div class="ar-bar" role="toolbar" aria-label="Editor tools">
  <div class="ar-group" data-group="tool">
    <button data-tool="cursor" title="Cursor (V)">Cursor</button><button data-tool="brush" title="Brush (B)">Brush</button><button data-tool="erase" title="Eraser (E)">Eraser</button>
  </div>
  <label class="ar-field" title="Brush radius in mm ([ and ])"><span>Radius</span> <input type="range" data-id="radius" min="0" max="${RADII.length - 1}" step="1"><output data-id="radius-mm"></output></label>
  <div class="ar-group"><button data-toggle="sphere" title="3D sphere (D)">3D</button><button data-toggle="protect" title="Protect other organs (X)">Protect</button></div>
  <div class="ar-group"><button data-do="undo" title="Undo (Z)">Undo</button><button data-do="redo" title="Redo (Y)">Redo</button></div>
  <label class="ar-field"><span>Window</span> <select data-id="window" title="Shift+1 to 5"></select></label>
  <div class="ar-group"><button data-toggle="labels" title="Labels (Space)">Labels</button><button data-toggle="fill" title="Fill (O)">Fill</button><button data-toggle="attention" title="Attention (A)">Attention</button><button data-toggle="own" title="Attention of the active organ only (Q)">This organ</button></div>
  <label class="ar-field"><span>Opacity</span> <input type="range" data-id="opacity" min="0" max="0.8" step="0.02"></label>
  <span class="ar-space"></span>
  <span class="ar-save" data-id="save" data-state="idle" role="status"></span>
  <div class="ar-group"><button data-do="save" title="Save now (S)">Save</button><button data-do="submit" class="ar-primary" title="Hand in this case">Submit</button><button data-do="next" title="Take the next case of the queue">Next case</button><button data-do="help" title="Keys (?)">?</button></div>
</div>
<div class="ar-body">
  <div class="ar-planes" data-large="">
    <div class="ar-plane" data-plane="axial"></div><div class="ar-plane" data-plane="coronal"></div><div class="ar-plane" data-plane="sagittal"></div>
    <div class="ar-message" data-id="message">Choose a case in the queue.</div>
  </div>
  <aside class="ar-side">
    <section><header><span data-id="case">No case</span><small data-id="case-note"></small></header></section>
    <section class="ar-organs"><header>Organs</header><ul data-id="organs"></ul></section>
    <section class="ar-components"><header>Attention <small data-id="reviewed"></small></header>
      <div class="ar-progress"><i data-id="reviewed-bar"></i></div><ol data-id="components"></ol></section>
  </aside>
</div>
<footer class="ar-foot"><span data-id="readout"></span><span class="ar-space"></span><span data-id="step"></span></footer>
<div class="ar-help" data-id="help" hidden><h3>Keys</h3><dl>${HELP.map(([k, what]) => `<dt>${k}</dt><dd>${what}</dd>`).join("")}</dl></div>`;

/** Build the editor inside `root`. `emit(name, detail)` tells the page; returns the Editor. */
export function mount(root, { base = "/api/v1", emit = () => {} } = {}) {
  const editor = new Editor(root, new Client(base), emit);
  root.atlasEditor = editor; // for tests and the curious
  return editor;
}

class Editor {
  constructor(root, client, emit) {
    Object.assign(this, { root, client, emit, tool: "brush", radius: 6, sphere: false, protect: true, own: false });
    this.stopwatch = new Stopwatch();
    this.organStates = new Map(); // organ -> {edit, saver}: undo history outlives a change of organ
    root.classList.add("ar-root");
    root.tabIndex = 0;
    root.innerHTML = TEMPLATE;
    this.parts = Object.fromEntries([...root.querySelectorAll("[data-id]")].map((part) => [part.dataset.id, part]));
    this.planes = Object.fromEntries([...root.querySelectorAll("[data-plane]")].map((el) => [el.dataset.plane, new Plane(el, el.dataset.plane)]));
    this.parts.window.innerHTML = WINDOWS.map(([name, width, level], n) => `<option value="${n}">${name} ${width}/${level}</option>`).join("") + "<option value='' hidden>own</option>";
    this.bindControls();
    this.bindPlanes();
    this.showTools();
  }

  // --- loading ---

  /** Show a case. Whatever is unsaved of the one before is saved first. */
  async open(caseId) {
    if (!caseId || (this.caseId === caseId && this.ready)) return;
    try {
      await this.flush();
      await this.release();
      this.leave();
      this.message(`Loading ${caseId} …`);
      await this.load(caseId);
      this.message("");
      this.emit("opened", { case_id: caseId });
      this.root.focus({ preventScroll: true });
    } catch (error) {
      this.message(`${caseId} cannot be shown: ${error.message}`);
    }
  }

  async load(caseId) {
    const started = performance.now();
    const at = (...parts) => this.client.bytes("cases", caseId, ...parts);
    const lease = await this.client.json("POST", ["cases", caseId, "lease"]).catch((error) => ({ refused: error.message }));
    const [info, components, image, labels, heat] = await Promise.all([
      this.client.json("GET", ["cases", caseId]), this.client.json("GET", ["cases", caseId, "components"]), at("image"), at("labels"), at("heat"),
    ]);
    Object.assign(this, { caseId, info, components: components.components, readOnly: lease.refused ?? null, current: -1 });
    this.scene = new Scene(parseNifti(image.buffer));
    this.scene.labels = parseNifti(labels.buffer).data;
    this.scene.heat = heat && parseNifti(heat.buffer).data;
    for (const organ of info.organs) this.scene.colors.set(organ.label_id, rgb(organ.color));
    for (const plane of Object.values(this.planes)) plane.setScene(this.scene);
    this.showCase();
    if (this.components.length) await this.goTo(0);
    else await this.activate((info.organs.find((organ) => organ.queried) ?? info.organs[0]).name);
    this.ready = true;
    this.leaseTimer = setInterval(() => this.keepLease(), LEASE_MS);
    this.root.dataset.case = caseId;
    this.root.dataset.loadMs = Math.round(performance.now() - started);
  }

  leave() {
    clearInterval(this.leaseTimer);
    this.organStates.clear();
    Object.assign(this, { ready: false, caseId: null, organ: null, active: null, edited: false, overlapped: false });
    delete this.root.dataset.case;
  }

  async keepLease() {
    try {
      await this.client.json("POST", ["cases", this.caseId, "lease"]);
    } catch (error) {
      if (error.status === 409) this.readOnly = error.message;
      this.showCase();
    }
  }

  // --- the active organ ---

  /** Take up an organ; one change after the other, and no painting meanwhile. */
  activate(name) {
    this.switching = (this.switching ?? Promise.resolve()).catch(() => {}).then(() => this.takeUp(name));
    const mine = this.switching;
    const free = () => { if (this.switching === mine) this.switching = null; };
    mine.then(free, free);
    return mine;
  }

  /** Save the organ before, put it back under, fetch the mask of this one. */
  async takeUp(name) {
    const organ = this.info.organs.find((o) => o.name === name);
    if (!organ || this.organ === organ) return;
    await this.flush();
    if (this.active) await this.putUnder();
    const { buffer, revision } = await this.client.bytes("cases", this.caseId, "labels", name);
    const state = this.organState(organ, parseNifti(buffer).data, revision);
    await this.fetchFlags(name);
    Object.assign(this, { organ, active: state });
    Object.assign(this.scene, { mask: state.edit.mask, activeId: organ.label_id });
    this.scene.hidden[organ.label_id] = 0;
    this.blockedIds = protectedIds(organ, this.info.organs);
    this.showOrgans();
    this.showSteps();
    state.saver.touch();
    this.draw();
  }

  /** Where the attention is this organ's own; the heat shown by default is that of all organs. */
  async fetchFlags(name) {
    const file = this.own ? await this.client.bytes("cases", this.caseId, "attention", name) : null;
    Object.assign(this.scene, { flags: file && parseNifti(file.buffer).data, flagBits: this.own ? 255 : 0 });
  }

  async toggleOwn() {
    this.own = !this.own;
    await this.fetchFlags(this.organ.name);
    this.showTools();
    this.draw();
  }

  /** The organ just left becomes part of the label map below. Who owns an overlap is the server's rule, so it is asked. */
  async putUnder() {
    if (!this.overlapped) return bake(this.scene.labels, this.scene.mask, this.organ.label_id);
    const { buffer } = await this.client.bytes("cases", this.caseId, "labels");
    this.scene.labels = parseNifti(buffer).data;
    this.overlapped = false;
    return undefined;
  }

  organState(organ, mask, revision) {
    const known = this.organStates.get(organ.name);
    if (known && known.saver.revision === revision) {
      known.edit.attach(mask);
      return known;
    }
    const edit = new OrganEdit({ mask, dims: this.scene.dims, spacing: this.scene.spacing });
    const report = (state, detail) => this.showSave(state, detail);
    const saver = new Saver(this.client, { caseId: this.caseId, organ: organ.name, edit, revision, stopwatch: this.stopwatch, report });
    const state = { edit, saver };
    this.organStates.set(organ.name, state);
    return state;
  }

  async flush() {
    if (this.active) await this.active.saver.flush();
  }

  /** S. After a conflict: take the newer label, set the own edits on top, and save that. */
  async save() {
    const { saver, edit } = this.active ?? {};
    if (!saver) return;
    try {
      if (saver.blocked) {
        const { buffer, revision } = await this.client.bytes("cases", this.caseId, "labels", this.organ.name);
        edit.rebase(parseNifti(buffer).data);
        Object.assign(saver, { revision, blocked: false });
        this.scene.mask = edit.mask;
        this.draw();
      }
      await saver.flush();
      if (!saver.pending) this.showSave("saved");
    } catch { /* the status line says what happened */ }
  }

  // --- attention components ---

  async goTo(n) {
    if (!this.components.length) return;
    this.current = (n + this.components.length) % this.components.length;
    const component = this.components[this.current];
    Object.assign(this.scene, { cursor: [...component.peak], box: component.box });
    component.seen = true;
    if (this.scene.zoom > 1) this.scene.focus = [...component.peak];
    this.showComponents();
    this.draw();
    await this.activate(component.organ);
  }

  async judge(verdict) {
    const component = this.components[this.current];
    if (!component) return;
    try {
      await this.client.json("PUT", ["cases", this.caseId, "components", component.organ, component.index, "verdict"], { verdict });
      component.verdict = verdict;
      this.showComponents();
    } catch (error) {
      this.note(error.message);
    }
  }

  async submit() {
    if (this.info.item.state === "submitted") return this.reopen();
    if (!this.active || this.readOnly) return undefined;
    const left = this.components.filter((c) => !c.seen && !c.verdict).length;
    if (left && !window.confirm(`${left} attention component(s) have not been looked at. Submit all the same?`)) return undefined;
    try {
      await this.flush();
      if (this.active.saver.pending) return undefined;
      await this.client.json("POST", ["cases", this.caseId, "submit"], { seconds: this.stopwatch.take() });
      const done = this.caseId;
      this.leave();
      this.message(`${done} is submitted. Choose the next case, or press “Next case”.`);
      this.emit("submitted", { case_id: done });
    } catch (error) {
      this.note(error.message);
    }
    return undefined;
  }

  async reopen() {
    try {
      await this.client.json("POST", ["cases", this.caseId, "reopen"], {});
      const again = this.caseId;
      this.leave();
      await this.open(again);
    } catch (error) {
      this.note(error.message);
    }
  }

  async openNext() {
    try {
      await this.flush();
      await this.release();
      const item = await this.client.json("POST", ["cases", "next"]);
      if (item) await this.open(item.case_id);
      else this.message("Nothing is left in this round's queue.");
    } catch (error) {
      this.note(error.message);
    }
  }

  /** Give a case back that was only looked at; one with edits stays the annotator's until the lease runs out. */
  async release() {
    if (!this.ready || this.readOnly || this.edited) return;
    await this.client.json("DELETE", ["cases", this.caseId, "lease"]).catch(() => {}); // the lease ends by itself
  }

  // --- painting ---

  blocked() {
    const { labels, activeId } = this.scene;
    const ids = this.blockedIds;
    return this.protect ? (voxel) => labels[voxel] !== activeId && ids[labels[voxel]] === 1 : null;
  }

  paint(plane, from, to, value) {
    const how = { radius: this.radius, value, across: plane.w.axis, sphere: this.sphere, blocked: this.blocked() };
    if (this.active.edit.paint(from, to, how)) this.drawSoon([plane]);
  }

  endStroke() {
    const step = this.active.edit.end();
    if (!step) return;
    this.edited = true;
    this.overlapped ||= !this.protect;
    this.showSteps();
    this.active.saver.touch();
    this.drawSoon();
  }

  undo(redo = false) {
    if (!this.active) return;
    const step = redo ? this.active.edit.redo() : this.active.edit.undo();
    if (!step) return;
    this.note(`${redo ? "Redone" : "Undone"}: ${step.name}`);
    this.showSteps();
    this.active.saver.touch();
    this.drawSoon();
  }

  // --- drawing ---

  drawSoon(planes = Object.values(this.planes)) {
    this.toDraw ??= new Set();
    for (const plane of planes) this.toDraw.add(plane);
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      for (const plane of this.toDraw) plane.draw();
      this.toDraw.clear();
    });
  }

  draw() {
    if (!this.scene) return;
    this.drawSoon();
  }

  moveCursor(position) {
    this.scene.cursor = this.scene.clamp(position);
    this.draw();
  }

  scroll(plane, steps) {
    const position = [...this.scene.cursor];
    position[plane.w.axis] += steps;
    this.moveCursor(position);
    this.follow(plane);
  }

  /** Keep the slice being looked at in view of the two other planes when they are zoomed. */
  follow(plane) {
    if (this.scene.zoom > 1) this.scene.focus[plane.w.axis] = this.scene.cursor[plane.w.axis];
  }

  zoom(plane, factor, x, y) {
    const before = plane.toVoxel(x, y);
    this.scene.zoom = Math.max(0.8, Math.min(20, this.scene.zoom * factor));
    const after = plane.toVoxel(x, y);
    for (const a of [plane.u.axis, plane.v.axis]) this.scene.focus[a] = Math.max(0, Math.min(this.scene.dims[a] - 1, this.scene.focus[a] + before[a] - after[a]));
    this.follow(plane);
    if (this.scene.zoom <= 1) this.scene.focus = this.scene.dims.map((n) => (n - 1) / 2);
    this.draw();
  }

  // --- mouse ---

  bindPlanes() {
    for (const plane of Object.values(this.planes)) {
      const element = plane.element;
      const on = (type, handler) => element.addEventListener(type, (event) => this.scene && this.ready && handler(event, ...offset(event, element)), { passive: false });
      on("pointerdown", (event, x, y) => this.pointerDown(plane, event, x, y));
      on("pointermove", (event, x, y) => this.pointerMove(plane, event, x, y));
      on("pointerup", (event) => this.pointerUp(plane, event));
      on("pointercancel", (event) => this.pointerUp(plane, event));
      on("pointerleave", () => this.showRing(plane, null));
      on("wheel", (event, x, y) => this.wheel(plane, event, x, y));
      on("dblclick", () => this.tool === "cursor" && this.enlarge(plane.name));
      on("contextmenu", (event) => event.preventDefault());
    }
  }

  pointerDown(plane, event, x, y) {
    this.root.focus({ preventScroll: true });
    this.stopwatch.touch();
    event.preventDefault();
    plane.element.setPointerCapture(event.pointerId);
    const at = plane.toVoxel(x, y);
    const kind = event.button === 2 ? "window" : event.button === 1 || event.shiftKey ? "pan" : this.tool === "cursor" || event.altKey ? "cursor" : "paint";
    this.drag = { kind, x, y, at, start: { ...this.scene.window } };
    if (kind === "cursor") this.moveCursor(at);
    if (kind !== "paint") return;
    if (this.readOnly || this.switching) {
      this.drag = null;
      this.note(this.readOnly ?? "one moment");
      return;
    }
    const erase = (this.tool === "erase") !== (event.ctrlKey || event.metaKey);
    this.drag.value = erase ? 0 : 1;
    this.active.edit.begin(`${erase ? "erase" : "paint"} ${this.organ.name}`);
    this.paint(plane, at, at, this.drag.value);
  }

  pointerMove(plane, event, x, y) {
    this.lastPlane = plane;
    const at = plane.toVoxel(x, y);
    this.showReadout(at);
    const drag = this.drag;
    this.showRing(plane, this.tool === "cursor" || (drag && drag.kind !== "paint") ? null : { x, y });
    if (!drag) return;
    this.stopwatch.touch();
    if (drag.kind === "cursor") this.moveCursor(at);
    else if (drag.kind === "paint") this.paint(plane, drag.at, at, drag.value);
    else if (drag.kind === "pan") { plane.pan(x - drag.x, y - drag.y); this.draw(); }
    else if (drag.kind === "window") {
      this.scene.setWindow(drag.start.width + (x - drag.x) * 2, drag.start.level + (y - drag.y) * 2);
      this.parts.window.value = "";
      this.draw();
    }
    if (drag.kind !== "window") Object.assign(drag, { at, x, y });
  }

  pointerUp() {
    const drag = this.drag;
    this.drag = null;
    if (drag?.kind === "paint") this.endStroke();
  }

  wheel(plane, event, x, y) {
    event.preventDefault();
    this.stopwatch.touch();
    if (event.ctrlKey || event.metaKey) return this.zoom(plane, event.deltaY < 0 ? 1.2 : 1 / 1.2, x, y);
    if (this.drag?.kind === "paint") return undefined; // a stroke stays in its slice
    return this.scroll(plane, Math.sign(event.deltaY));
  }

  // --- keys ---

  bindControls() {
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("click", (event) => this.click(event));
    this.parts.radius.addEventListener("input", () => this.setRadius(RADII[this.parts.radius.value]));
    this.parts.opacity.addEventListener("input", () => this.scene && ((this.scene.opacity = Number(this.parts.opacity.value)), this.draw()));
    this.parts.window.addEventListener("change", () => this.preset(Number(this.parts.window.value)));
    window.addEventListener("beforeunload", (event) => { if (this.active?.saver.pending) event.preventDefault(); });
    document.addEventListener("visibilitychange", () => document.hidden && this.flush().catch(() => {}));
  }

  key(event) {
    if (isTextField(event.target) || !this.ready || this.drag?.kind === "paint") return;
    if (event.target.tagName === "BUTTON" && [" ", "Enter"].includes(event.key)) return; // reached by Tab: it presses the button
    this.stopwatch.touch();
    const plain = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const command = event.ctrlKey || event.metaKey;
    const action = command ? this.commandKeys(plain, event.shiftKey) : this.digitKey(event) ?? this.plainKeys()[plain];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  commandKeys(key, shift) {
    return { z: () => this.undo(shift), y: () => this.undo(true), s: () => this.save() }[key];
  }

  digitKey(event) {
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1]; // event.key of shift+digit depends on the keyboard
    if (!digit) return undefined;
    if (event.shiftKey) return WINDOWS[digit - 1] && (() => this.preset(digit - 1));
    const organ = this.info.organs[digit - 1];
    return organ && (() => this.activate(organ.name).catch((error) => this.note(error.message)));
  }

  plainKeys() {
    const plane = this.lastPlane ?? this.planes.axial;
    const size = (step) => () => this.setRadius(RADII[Math.max(0, Math.min(RADII.length - 1, RADII.indexOf(this.radius) + step))]);
    const go = (step) => () => this.goTo(this.current + step).catch((error) => this.note(error.message));
    return {
      b: () => this.setTool("brush"), e: () => this.setTool("erase"), v: () => this.setTool("cursor"), "[": size(-1), "]": size(1),
      z: () => this.undo(), y: () => this.undo(true), n: go(1), p: go(-1), s: () => this.save(),
      k: () => this.judge("accepted"), f: () => this.judge("fixed"), j: () => this.judge("not_an_error"),
      " ": () => this.toggle("labels"), a: () => this.toggle("attention"), q: () => this.toggle("own"), o: () => this.toggle("fill"), c: () => this.toggle("crosshair"),
      d: () => this.toggle("sphere"), x: () => this.toggle("protect"), r: () => this.resetView(), m: () => this.enlarge(plane.name),
      "?": () => (this.parts.help.hidden = !this.parts.help.hidden), Escape: () => (this.parts.help.hidden = true),
      ArrowUp: () => this.scroll(plane, 1), ArrowRight: () => this.scroll(plane, 1), ArrowDown: () => this.scroll(plane, -1), ArrowLeft: () => this.scroll(plane, -1),
      PageUp: () => this.scroll(plane, 10), PageDown: () => this.scroll(plane, -10),
    };
  }

  click(event) {
    const data = event.target.closest("button, li")?.dataset ?? {};
    if (data.do === "help") this.parts.help.hidden = !this.parts.help.hidden;
    else if (!this.parts.help.hidden && event.target.closest(".ar-help")) this.parts.help.hidden = true;
    if (data.do === "next") this.openNext();
    if (!this.ready) return;
    this.stopwatch.touch();
    const failed = (error) => this.note(error.message);
    if (data.tool) this.setTool(data.tool);
    if (data.toggle) this.toggle(data.toggle);
    if (data.do === "undo") this.undo();
    if (data.do === "redo") this.undo(true);
    if (data.do === "save") this.save();
    if (data.do === "submit") this.submit();
    if (data.verdict) this.goTo(Number(data.component)).then(() => this.judge(data.verdict)).catch(failed);
    else if (data.component) this.goTo(Number(data.component)).catch(failed);
    if (data.eye) this.hide(Number(data.eye));
    else if (data.organ) this.activate(data.organ).catch(failed);
    if (!isTextField(event.target) && event.target.tagName !== "SELECT") this.root.focus({ preventScroll: true });
  }

  // --- small switches ---

  setTool(tool) {
    this.tool = tool;
    this.showTools();
  }

  setRadius(radius) {
    this.radius = radius;
    this.showTools();
    for (const plane of Object.values(this.planes)) if (plane.ring) this.showRing(plane, plane.ring);
  }

  preset(n) {
    if (!this.scene || !WINDOWS[n]) return;
    this.scene.setWindow(WINDOWS[n][1], WINDOWS[n][2]);
    this.parts.window.value = String(n);
    this.draw();
  }

  toggle(what) {
    if (what === "own") return void this.toggleOwn().catch((error) => this.note(error.message));
    if (what === "sphere" || what === "protect") this[what] = !this[what];
    else this.scene.show[what] = !this.scene.show[what];
    this.showTools();
    this.draw();
    return undefined;
  }

  hide(labelId) {
    this.scene.hidden[labelId] ^= 1;
    this.showOrgans();
    this.draw();
  }

  enlarge(name) {
    const planes = this.root.querySelector(".ar-planes");
    planes.dataset.large = planes.dataset.large === name ? "" : name;
  }

  resetView() {
    Object.assign(this.scene, { zoom: 1, focus: this.scene.dims.map((n) => (n - 1) / 2) });
    this.draw();
  }

  // --- panels ---

  message(text) {
    this.parts.message.textContent = text;
    this.parts.message.hidden = !text;
  }

  note(text) {
    this.parts.step.textContent = text;
  }

  showTools() {
    for (const button of this.root.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === this.tool);
    for (const button of this.root.querySelectorAll("[data-toggle]")) {
      const what = button.dataset.toggle;
      button.setAttribute("aria-pressed", Boolean(what in this ? this[what] : this.scene?.show[what] ?? true));
    }
    this.parts.radius.value = RADII.indexOf(this.radius);
    this.parts["radius-mm"].textContent = `${this.radius} mm`;
    this.parts.opacity.value = this.scene?.opacity ?? 0.22;
    this.root.dataset.tool = this.tool;
  }

  showRing(plane, at) {
    plane.ring = at && { x: at.x, y: at.y, radius: this.radius, erase: this.tool === "erase" };
    plane.drawTop();
  }

  showReadout(position) {
    const voxel = this.scene.clamp(position);
    const inside = position.every((p, a) => p > -0.5 && p < this.scene.dims[a] - 0.5);
    const index = this.scene.index(voxel);
    const id = this.scene.labelAt(index);
    const organ = this.info.organs.find((o) => o.label_id === id)?.name ?? "";
    const mm = toWorld(this.scene.affine, voxel).map((value) => value.toFixed(1)).join(", ");
    this.parts.readout.textContent = inside ? `${this.scene.data[index]} HU   voxel ${voxel.join(", ")}   RAS ${mm} mm   ${pretty(organ)}` : "";
  }

  showSteps() {
    const { past, future } = this.active.edit;
    this.root.querySelector('[data-do="undo"]').disabled = !past.length;
    this.root.querySelector('[data-do="redo"]').disabled = !future.length;
    const last = past.at(-1);
    if (last) this.note(`${past.length} step${past.length > 1 ? "s" : ""}, last: ${pretty(last.name)} (${last.voxels.length} voxels)`);
  }

  showSave(state, detail) {
    const revision = this.active?.saver.revision ?? 0;
    const texts = {
      saved: `Saved · revision ${revision}`, unsaved: "Unsaved", saving: "Saving …", offline: "Server away; trying again",
      refused: `Not saved: ${detail}`, conflict: "Conflict: a newer label exists. S puts your edits on top of it",
    };
    Object.assign(this.parts.save, { textContent: texts[state], title: texts[state] });
    this.parts.save.dataset.state = state;
    if (state === "saved") this.showOrgans();
  }

  showCase() {
    const { info } = this;
    this.parts.case.textContent = info.case_id;
    const size = `${info.shape.join(" × ")}, ${info.spacing.map((s) => s.toFixed(2)).join(" × ")} mm`;
    this.parts["case-note"].textContent = this.readOnly ? `read only: ${this.readOnly}` : size;
    this.root.dataset.readOnly = Boolean(this.readOnly);
    this.root.querySelector('[data-do="submit"]').textContent = info.item.state === "submitted" ? "Reopen" : "Submit";
    this.showOrgans();
    this.showComponents();
    this.showTools();
  }

  showOrgans() {
    this.parts.organs.innerHTML = this.info.organs.map((organ, n) => {
      const active = organ === this.organ;
      const revision = this.organStates.get(organ.name)?.saver.revision ?? organ.rev;
      return `<li data-organ="${organ.name}" aria-current="${active}" class="${organ.queried ? "queried" : ""}">
        <i style="background:${organ.color}"></i><kbd>${n < 9 ? n + 1 : ""}</kbd><span>${pretty(organ.name)}</span>
        <small title="revision">${revision ? `r${revision}` : ""}</small>
        <button data-eye="${organ.label_id}" aria-pressed="${!this.scene?.hidden[organ.label_id]}" title="Show or hide">${this.scene?.hidden[organ.label_id] ? "○" : "●"}</button></li>`;
    }).join("");
  }

  showComponents() {
    const total = this.components.reduce((sum, c) => sum + c.score, 0);
    const done = this.components.filter((c) => c.seen || c.verdict).reduce((sum, c) => sum + c.score, 0);
    const share = total ? Math.round((100 * done) / total) : 100;
    this.parts.reviewed.textContent = this.components.length ? `${share} % seen` : "none in this case";
    this.parts["reviewed-bar"].style.width = `${share}%`;
    const color = Object.fromEntries(this.info.organs.map((organ) => [organ.name, organ.color]));
    this.parts.components.innerHTML = this.components.map((c, n) => `
      <li data-component="${n}" aria-current="${n === this.current}" data-verdict="${c.verdict ?? ""}">
        <i style="background:${color[c.organ]}"></i><b>${c.index}</b><span>${pretty(c.organ)} <em>${(c.volume_mm3 / 1000).toFixed(c.volume_mm3 < 1000 ? 2 : 1)} ml</em>
        <small>${c.criteria.map(pretty).join(", ")}</small></span>
        <div>${[["accepted", "✓"], ["fixed", "✎"], ["not_an_error", "✗"]].map(([v, sign]) =>
    `<button data-component="${n}" data-verdict="${v}" aria-pressed="${c.verdict === v}" title="${REASONS[v]}">${sign}</button>`).join("")}</div></li>`).join("");
    this.parts.components.querySelector('[aria-current="true"]')?.scrollIntoView({ block: "nearest" });
  }
}

function isTextField(target) {
  if (target.isContentEditable || ["TEXTAREA", "SELECT"].includes(target.tagName)) return true;
  return target.tagName === "INPUT" && !["range", "checkbox", "radio", "button"].includes(target.type);
}

function offset(event, element) {
  const box = element.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function rgb(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}

function pretty(name) {
  return name.replaceAll("_", " ");
}
