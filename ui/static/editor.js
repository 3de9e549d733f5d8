// The editor: one open case, its active organ, and what the page's controls do to them.

import { Client } from "./client.js";
import { rgb } from "./colors.js";
import { bindControls } from "./controls.js";
import { Drafts } from "./drafts.js";
import { bake, protectedIds } from "./edit.js";
import { WINDOWS } from "./keys.js";
import { bindPlanes, showRing } from "./mouse.js";
import { OrganState, stepVoxels } from "./organs.js";
import { escapeHtml, historyList, pretty, reviewedShare, takeTable, template } from "./panels.js";
import { boxFaces, copySliceRuns, difference, differenceWithin, seedBox } from "./region.js";
import { Packed, countVoxels } from "./runs.js";
import { showCase, showComments, showComponents, showCriteria, showOrgans, showSave, showSteps, showTab, showTools } from "./shown.js";
import { Stopwatch } from "./stopwatch.js";
import { Takeover, componentRegion } from "./take.js";
import { Plane, Scene } from "./view.js";
import { Volumes } from "./volumes.js";

const LEASE_MS = 60000;
const PREFETCH_MS = 1500; // after the first view: its own requests come first
const LEFT_TO_ASK = 0.2; // share of the attention without a verdict above which submitting asks

/** Build the editor inside `root`. `emit(name, detail)` tells the page; returns the Editor. */
export function mount(root, { base = "/api/v1", emit = () => {} } = {}) {
  const editor = new Editor(root, new Client(base), emit);
  root.atlasEditor = editor; // for tests and the curious
  return editor;
}

class Editor {
  constructor(root, client, emit) {
    Object.assign(this, { root, client, emit, volumes: new Volumes(client), stopwatch: new Stopwatch(), states: new Map(), hiddenCriteria: new Set() });
    Object.assign(this, { tool: "brush", radius: 6, sphere: false, protect: true, own: false, gate: false, gateRange: [-100, 200], boxed: false, tab: "errors" });
    root.classList.add("ar-root");
    root.tabIndex = 0;
    root.innerHTML = template();
    this.parts = Object.fromEntries([...root.querySelectorAll("[data-id]")].map((part) => [part.dataset.id, part]));
    this.planes = Object.fromEntries([...root.querySelectorAll("[data-plane]")].map((el) => [el.dataset.plane, new Plane(el, el.dataset.plane)]));
    bindControls(this);
    bindPlanes(this);
    showTools(this);
    showTab(this);
    this.started = this.start();
  }

  /** Who works here, and whether an earlier session left something that the server does not have. */
  async start() {
    [this.session, this.drafts] = await Promise.all([this.client.json("GET", ["session"]), Drafts.open()]);
    const { user, round } = this.session;
    const left = (await this.drafts.shelves()).find((shelf) => shelf.user === user && shelf.round === round);
    if (left && !this.opening) this.message(`Edits of ${left.caseId} did not reach the server before this browser was closed.`, { [`Open ${left.caseId}`]: () => this.open(left.caseId) });
  }

  // --- loading ---

  /** Show a case. Whatever is not sent of the one before is sent first. */
  async open(caseId) {
    if (!caseId || (this.caseId === caseId && this.ready)) return;
    this.opening = caseId;
    try {
      await this.started;
      await this.close();
      this.message(`Loading ${caseId} …`);
      await this.load(caseId);
      this.message("");
      this.emit("opened", { case_id: caseId });
      this.root.focus({ preventScroll: true });
    } catch (error) {
      this.message(`${caseId} cannot be shown: ${error.message}`, { "Try again": () => this.open(caseId) });
    }
  }

  async load(caseId) {
    const begun = performance.now();
    const described = await this.volumes.describe(caseId);
    const { info, components } = described;
    const [readOnly, { image, labels, heat, first }] = await Promise.all([this.claim(info), this.volumes.load(described)]);
    Object.assign(this, { caseId, info, components, readOnly, current: -1, takeover: new Takeover(this.client, caseId, info.architectures) });
    this.scene = Object.assign(new Scene(image), { labels, heat });
    for (const organ of info.organs) this.scene.colors.set(organ.label_id, rgb(organ.color));
    for (const plane of Object.values(this.planes)) plane.setScene(this.scene);
    showCase(this);
    if (components.length) this.look(0);
    await this.takeUp(first.name, first);
    this.ready = true;
    this.root.dataset.case = caseId;
    this.root.dataset.loadMs = Math.round(performance.now() - begun);
    this.leaseTimer = setInterval(() => this.keepLease(), LEASE_MS);
    this.prefetchTimer = setTimeout(() => this.fetchAhead().catch(() => {}), PREFETCH_MS); // only a convenience
    showComments(this).catch(() => {});
    await this.replayOthers(first.name);
  }

  /** What is asked for next: the networks' label maps, then the next case. */
  async fetchAhead() {
    if (!this.readOnly) await this.takeover.fetchAhead();
    await this.volumes.prefetch();
  }

  /** Lease the case. Resolves with null, or why it can only be looked at; what is known to be refused is not asked for. */
  async claim({ case_id: caseId, item, holder }) {
    if (item.state === "submitted") return "submitted; reopen it to change it";
    if (holder && holder !== this.session.user) return `${holder} works on it`;
    return this.client.json("POST", ["cases", caseId, "lease"]).then(() => null, (error) => error.message);
  }

  /** Drafts of organs other than the first: take each up once, so that it is sent. */
  async replayOthers(shown) {
    const waiting = (await this.drafts.shelves()).filter((shelf) => JSON.stringify(shelf) === JSON.stringify(this.shelf(shelf.organ)) && shelf.organ !== shown);
    for (const { organ } of waiting) await this.activate(organ);
    if (waiting.length) await this.activate(shown);
  }

  shelf(organ) {
    return { user: this.session.user, round: this.session.round, caseId: this.caseId, organ };
  }

  /** Send everything, give the case back if it was only looked at, and forget it. */
  async close() {
    if (!this.ready) return;
    await this.flush();
    await this.sendTime();
    if (!this.readOnly && !this.edited) await this.client.json("DELETE", ["cases", this.caseId, "lease"]).catch(() => {}); // it ends by itself
    this.leave();
  }

  leave() {
    clearInterval(this.leaseTimer);
    clearTimeout(this.prefetchTimer);
    this.states.clear();
    Object.assign(this, { ready: false, caseId: null, organ: null, active: null, edited: false, overlapped: false, history: null });
    delete this.root.dataset.case;
  }

  async keepLease() {
    this.sendTime();
    try {
      if (!this.readOnly) await this.client.json("POST", ["cases", this.caseId, "lease"]);
    } catch (error) {
      if (error.status === 409) this.readOnly = error.message;
      showCase(this);
    }
  }

  async sendTime() {
    const entries = this.stopwatch.takeAll().filter(({ seconds }) => seconds >= 0.05);
    if (!entries.length || !this.caseId || this.readOnly) return;
    await this.client.json("POST", ["cases", this.caseId, "time"], { entries }).catch(() => this.stopwatch.putBack(entries));
  }

  // --- the active organ ---

  /** Take up an organ; one change after the other, and no painting meanwhile. */
  activate(name) {
    return this.exclusively(() => this.takeUp(name));
  }

  activateNumber(n) {
    const organ = this.info.organs[n];
    if (organ) this.activate(organ.name).catch((error) => this.note(error.message));
  }

  /** Run one slow change after the other; while one runs nothing can be painted. */
  exclusively(change) {
    const mine = (this.switching ?? Promise.resolve()).catch(() => {}).then(change);
    this.switching = mine;
    const free = () => { if (this.switching === mine) this.switching = null; };
    mine.then(free, free);
    return mine;
  }

  async takeUp(name, taken = null) {
    const organ = this.info.organs.find((o) => o.name === name);
    if (!organ || this.organ === organ) return;
    const state = this.states.get(name) ?? (await this.newState(organ, taken ?? (await this.volumes.organ(this.caseId, name))));
    if (this.active) await this.putUnder();
    state.wake();
    Object.assign(this, { organ, active: state });
    Object.assign(this.scene, { mask: state.edit.mask, activeId: organ.label_id, compare: null, flags: null });
    this.scene.seeds.clear();
    this.scene.hidden[organ.label_id] = 0;
    this.blockedIds = protectedIds(organ, this.info.organs);
    this.history = null;
    this.flagsReady = this.fetchFlags(state);
    this.flagsReady.catch((error) => this.note(error.message));
    this.turnClock();
    showOrgans(this);
    showSteps(this);
    showSave(this);
    this.showHistory().catch(() => {});
    this.draw();
  }

  async newState(organ, taken) {
    const { client, drafts, caseId, scene: { dims, spacing }, session: { user } } = this;
    const state = new OrganState(organ, taken, {
      client, drafts, caseId, shelf: this.shelf(organ.name), dims, spacing, user,
      report: () => showSave(this), changed: (changed) => this.caughtUp(changed), ask: (conflict) => this.askConflict(conflict),
    });
    this.states.set(organ.name, state);
    const replayed = this.readOnly ? 0 : await state.replayDrafts(taken.steps);
    if (replayed) {
      this.edited = true;
      this.note(`${replayed} step${replayed > 1 ? "s" : ""} of an earlier session restored`);
    }
    return state;
  }

  /** The organ's own attention. */
  async fetchFlags(state) {
    if (state.flags === undefined) {
      const hasAny = this.components.some((c) => c.organ === state.organ.name);
      const flags = hasAny ? await this.volumes.flags(this.caseId, state.organ.name) : null;
      state.flags = flags && new Packed(flags);
      if (state === this.active) this.scene.flags = flags;
    } else if (state === this.active) this.scene.flags = state.flags && state.flags.unpack();
    showCriteria(this);
    this.draw();
  }

  /** The organ just left becomes part of the label map below. Who owns an overlap is the server's rule, so it is asked. */
  async putUnder() {
    if (this.overlapped) {
      await this.flush();
      this.scene.labels = await this.volumes.labels(this.caseId);
      this.overlapped = false;
    } else bake(this.scene.labels, this.scene.mask, this.organ.label_id);
    this.active.rest();
  }

  async flush() {
    await Promise.all([...this.states.values()].map((state) => state.outbox.flush()));
  }

  /** S: send what waits. The status line says what happened. */
  async save() {
    await this.flush().catch(() => {});
    showSave(this);
  }

  /** The server had newer steps, and the own ones now stand on top of them. */
  caughtUp(state) {
    if (state !== this.active) return;
    this.scene.mask = state.edit.mask;
    this.scene.compare = null;
    showSteps(this);
    this.draw();
    this.note("Somebody else changed this organ; your steps are on top of the newer label");
  }

  /** Two people changed the same voxels. Nothing is lost either way: both stay in the history. */
  async askConflict({ state, own, theirs, shared }) {
    const who = [...new Set(theirs.map((step) => step.user))].join(", ");
    const outline = async () => {
      if (this.active !== state) await this.activate(state.organ.name);
      this.scene.compare = this.scene.compare ? null : state.withOthers(own, theirs);
      this.draw();
    };
    return this.ask(
      `${who} changed ${pretty(state.organ.name)} meanwhile: ${stepVoxels(theirs)} voxels, yours are ${stepVoxels(own)}, and ${shared} are in both. Both stay in the history.`,
      { mine: "Mine on top", theirs: "Keep theirs (redo brings mine back)", show: { text: "Outline theirs", run: () => outline().catch((error) => this.note(error.message)) } },
    );
  }

  // --- errors ---

  /** Put crosshair and box on a component. */
  look(n) {
    this.current = (n + this.components.length) % this.components.length;
    const component = this.components[this.current];
    Object.assign(this.scene, { cursor: [...component.peak], box: component.box });
    component.seen = true;
    if (this.scene.zoom > 1) this.scene.focus = [...component.peak];
    this.turnClock();
    showComponents(this);
    this.draw();
    return component;
  }

  async goTo(n) {
    if (!this.components.length) return;
    await this.activate(this.look(n).organ);
  }

  step(by) {
    this.goTo(this.current + by).catch((error) => this.note(error.message));
  }

  get component() {
    const component = this.components?.[this.current];
    return component && component.organ === this.organ?.name ? component : null;
  }

  turnClock() {
    this.stopwatch.turnTo({ organ: this.organ?.name, component: this.component?.index });
  }

  /** Say what the current component was, and go on to the next one without a verdict. */
  async judge(verdict) {
    const component = this.components[this.current];
    if (!component || this.readOnly) return;
    try {
      await this.client.json("PUT", ["cases", this.caseId, "components", component.organ, component.index, "verdict"], { verdict });
      component.verdict = verdict;
      showComponents(this);
      const open = this.components.map((c, n) => n).filter((n) => !this.components[n].verdict);
      const next = open.find((n) => n > this.current) ?? open[0];
      if (next === undefined) this.note("Every error has a verdict: Ctrl+Enter submits the case");
      else await this.goTo(next);
    } catch (error) {
      this.note(error.message);
    }
  }

  // --- the case ---

  async submit() {
    if (!this.ready) return undefined;
    if (this.info.item.state === "submitted") return this.reopen();
    if (this.readOnly) return this.note(this.readOnly);
    const left = 1 - reviewedShare(this.components)[0];
    if (left > LEFT_TO_ASK && (await this.ask(`${Math.round(100 * left)} % of the attention has no verdict yet.`, { submit: "Submit all the same", back: "Back to the case" })) !== "submit") return undefined;
    const verdict = this.edited || this.info.organs.some((organ) => organ.rev) ? "fixed" : "accepted";
    return this.handIn("submit", { verdict, seconds: 0 }, "is submitted", "submitted");
  }

  /** Skip or flag, with a reason. */
  async setAside(action) {
    const note = await this.ask(action === "skip" ? "Skip this case? Somebody else gets it. Why:" : "Flag this case for somebody else to look at. Why:", { ok: action === "skip" ? "Skip" : "Flag", back: "Back" }, { input: true });
    if (note !== null) await this.handIn(action, { note }, action === "skip" ? "is skipped" : "is flagged", "submitted");
  }

  async handIn(action, body, said, event) {
    try {
      await this.flush();
      await this.sendTime();
      await this.client.json("POST", ["cases", this.caseId, action], body);
      const done = this.caseId;
      this.leave();
      this.message(`${done} ${said}.`, { "Next case": () => this.openNext() });
      this.emit(event, { case_id: done });
    } catch (error) {
      this.note(error.message);
    }
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
      await this.close();
      const item = await this.client.json("POST", ["cases", "next"]);
      if (item) await this.open(item.case_id);
      else this.message("Nothing is left in this round's queue.");
    } catch (error) {
      this.note(error.message);
      if (!this.ready) this.message(error.message, { "Try again": () => this.openNext() });
    }
  }

  async addComment() {
    const text = this.parts.comment.value.trim();
    if (!text) return;
    await this.client.json("POST", ["cases", this.caseId, "comments"], { text });
    this.parts.comment.value = "";
    await showComments(this);
  }

  // --- changing the mask ---

  get editable() {
    if (!this.ready || this.readOnly) this.note(this.readOnly ?? "");
    else if (this.switching) this.note("one moment");
    else return true;
    return false;
  }

  /** (voxel, value) => true where nothing may change: another organ, outside the HU gate. Null where everything may. */
  blocked(painted = 1) {
    const { scene: { labels, activeId, data }, blockedIds: ids, protect, gate, gateRange: [low, high] } = this;
    if (!protect && !gate) return null;
    return (voxel, value = painted) =>
      (protect && value === 1 && labels[voxel] !== activeId && ids[labels[voxel]] === 1) || (gate && (data[voxel] < low || data[voxel] > high));
  }

  /** A step was made (null: it changed nothing): send it and show it. */
  made(step) {
    if (!step) {
      this.active.outbox.dropOpen();
      return null;
    }
    this.stopwatch.touch();
    this.active.send(step, { seconds: this.stopwatch.take(), component: this.component?.index ?? null });
    this.edited = true;
    this.overlapped ||= !this.protect;
    this.scene.compare = null;
    showSteps(this);
    this.drawSoon();
    return step;
  }

  undo(redo = false) {
    if (!this.editable) return null;
    const step = this.made(redo ? this.active.edit.redo() : this.active.edit.undo());
    if (step) this.note(`${redo ? "Redone" : "Undone"}: ${pretty(step.name)} (${countVoxels(step.runs)} voxels)`);
    return step;
  }

  /** The slice on the last plane used becomes like its neighbor. */
  copySlice(by) {
    if (!this.editable) return;
    const { scene, active: { edit } } = this;
    const { axis } = (this.lastPlane ?? this.planes.axial).w;
    const to = scene.cursor[axis];
    if (to + by < 0 || to + by >= scene.dims[axis]) return;
    const runs = copySliceRuns(scene, edit.mask, axis, to + by, to);
    if (!this.made(edit.write(`copy slice to ${this.organ.name}`, runs, this.blocked()))) this.note("The slices are alike");
  }

  /** Let the server work out a change; it is applied here as one step. */
  async propose(tool, extra = {}) {
    if (!this.editable) return;
    const { axis } = (this.lastPlane ?? this.planes.axial).w;
    const mm = Number(this.parts.mm.value);
    const knobs = { interpolate: { axis }, grow: { mm }, shrink: { mm }, smooth: { mm }, remove_small: { mm3: 1000 * Number(this.parts.ml.value) } }[tool];
    const box = this.boxed && this.component ? { box: this.component.box } : {};
    const { active, organ } = this;
    this.note(`${pretty(tool)} …`);
    await this.exclusively(async () => {
      await active.outbox.flush();
      const runs = await this.client.propose(this.caseId, organ.name, { tool, rev: active.outbox.revision, protect: this.protect, ...knobs, ...box, ...extra });
      if (!this.made(active.edit.write(`${pretty(tool)} ${organ.name}`, runs, this.blocked()))) this.note(`${pretty(tool)} changes nothing here`);
    }).catch((error) => this.note(`${pretty(tool)}: ${error.message}`));
  }

  /** Grow a region from the strokes made with the grow tool. */
  async growSeeds() {
    const { scene } = this;
    const pick = (value) => [...scene.seeds].filter(([, v]) => v === value).map(([voxel]) => voxel);
    const [foreground, background] = [pick(1), pick(0)];
    if (!foreground.length) return this.note("Paint some strokes inside the organ first (and with Ctrl some outside)");
    const box = seedBox(scene, [...scene.seeds.keys()]);
    const outside = background.length ? background : boxFaces(scene, box).filter((voxel) => !scene.seeds.has(voxel));
    await this.propose("random_walker", { foreground, background: outside, box });
    scene.seeds.clear();
    return this.draw();
  }

  // --- take it from ---

  /** Voxels that taking may change: the current component's, or all (null). */
  async region(where) {
    if (where === "organ") return null;
    await this.flagsReady;
    return componentRegion(this.scene, this.scene.flags, this.component);
  }

  /** One network's answer, in turn; the same key again takes it back and tries the next. */
  async takeNext(where) {
    if (!this.editable) return;
    if (where === "component" && !this.component) return void this.note("No error is chosen: N goes to the next, Shift+T takes the whole organ");
    const { edit } = this.active;
    const place = where === "organ" ? `${this.organ.name}` : `${this.organ.name} ${this.component.index}`;
    if (!this.takeover.knowing(this.organ).length) return void this.note(`No network knows ${pretty(this.organ.name)}: there is nothing to take`);
    const { name, again } = this.takeover.turn(this.organ, place, edit.past.at(-1) ?? null);
    if (again) this.undo();
    if (name === null) this.note("Every network was tried: back to your own mask");
    else await this.take(name, where);
  }

  async take(name, where) {
    if (!this.editable) return;
    await this.exclusively(async () => {
      const { edit } = this.active;
      const [labels, region] = [await this.takeover.labelMap(name), await this.region(where)];
      const runs = region ? differenceWithin(edit.mask, labels, this.organ.label_id, region) : difference(edit.mask, labels, this.organ.label_id).runs;
      const step = this.made(edit.write(`take ${this.organ.name} from ${name}`, runs, this.blocked()));
      this.takeover.took(step && edit.past.at(-1));
      const what = where === "organ" ? pretty(this.organ.name) : "this error";
      this.note(step ? `${what} taken from ${name}: ${countVoxels(step.runs)} voxels; the same key tries the next network` : `${name} says the same about ${what}`);
    }).catch((error) => this.note(error.message));
    if (!this.parts.takes.hidden) await this.showTakes({ keep: true });
  }

  async showTakes({ keep = false } = {}) {
    const { takes } = this.parts;
    if (!takes.hidden && !keep) return void (takes.hidden = true);
    if (!this.ready) return undefined;
    takes.innerHTML = "<header>Comparing …</header>";
    takes.hidden = false;
    try {
      const region = this.component ? await this.region("component") : null;
      const rows = await this.takeover.compare(this.active.edit.mask, this.organ, region);
      takes.innerHTML = takeTable(rows, { organ: this.organ, hasComponent: region !== null });
    } catch (error) {
      takes.innerHTML = `<header>${escapeHtml(error.message)}</header>`;
    }
    return undefined;
  }

  // --- history ---

  /** The organ's steps, in the panel; only while it is looked at. */
  async showHistory() {
    if (this.tab !== "history" || !this.active) return;
    const { active } = this;
    await active.outbox.flush().catch(() => {});
    const { steps } = await this.client.steps(this.caseId, active.organ.name);
    if (active !== this.active) return;
    this.history = steps;
    this.parts.history.innerHTML = historyList(steps, { shown: this.scene.compare ? this.comparing : null, readOnly: this.readOnly });
  }

  /** Outline the mask as it was before a step, and go to where the step was. */
  async compareWith(revision) {
    if (this.scene.compare && this.comparing === revision) this.scene.compare = null;
    else {
      await this.active.outbox.flush().catch(() => {});
      this.scene.compare = await this.active.maskAt(revision - 1);
      this.comparing = revision;
      const runs = this.history?.find((step) => step.revision_id === revision)?.runs ?? [];
      if (runs.length) this.moveCursor(this.scene.position(runs[3 * Math.floor(runs.length / 6)]));
      this.note(this.scene.compare ? "White dashes: the mask before this step" : "That is more than 200 steps ago");
    }
    this.draw();
    await this.showHistory();
  }

  /** Bring an earlier mask back, as a new step. */
  async revert(revision) {
    if (!this.editable) return;
    const { active } = this;
    await this.exclusively(async () => {
      await active.outbox.flush();
      await this.client.json("POST", ["cases", this.caseId, "labels", active.organ.name, "revert", revision]);
      await active.catchUp();
      this.edited = true;
    }).catch((error) => this.note(error.message));
    this.scene.compare = null;
    this.note(`Back at revision ${revision}; undo brings the rest again`);
    await this.showHistory();
    showOrgans(this);
    this.draw();
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
    if (this.scene) this.drawSoon();
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

  get waiting() {
    return [...this.states.values()].some((state) => state.outbox.pending);
  }

  // --- small switches ---

  enter() {
    if (!this.ready) return this.parts["message-buttons"].querySelector("button")?.click();
    return this.scene.seeds.size ? this.growSeeds() : undefined;
  }

  escape() {
    this.parts.help.hidden = this.parts.takes.hidden = true;
    if (!this.ready) return;
    this.scene.seeds.clear();
    this.scene.compare = null;
    this.draw();
  }

  setTool(tool) {
    this.tool = tool;
    showTools(this);
  }

  setRadius(radius) {
    this.radius = radius;
    showTools(this);
    for (const plane of Object.values(this.planes)) if (plane.ring) showRing(this, plane, plane.ring);
  }

  preset(n) {
    if (!this.scene || !WINDOWS[n]) return;
    this.scene.setWindow(WINDOWS[n][1], WINDOWS[n][2]);
    this.parts.window.value = String(n);
    this.draw();
  }

  toggle(what) {
    if (["sphere", "protect", "gate", "own", "boxed"].includes(what)) this[what] = !this[what];
    else if (this.scene) this.scene.show[what] = !this.scene.show[what];
    showTools(this);
    showCriteria(this);
    this.draw();
  }

  /** Show or hide one criterion; the first one shows the active organ's own attention. */
  toggleCriterion(n) {
    const name = this.criteria[n];
    if (name === undefined) return;
    if (!this.own) this.own = true;
    else if (!this.hiddenCriteria.delete(name)) this.hiddenCriteria.add(name);
    showTools(this);
    showCriteria(this);
    this.draw();
  }

  /** Criteria in the order of their bits in the attention files. */
  get criteria() {
    return this.info.criteria;
  }

  hide(labelId) {
    this.scene.hidden[labelId] ^= 1;
    showOrgans(this);
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

  toggleHelp() {
    this.parts.help.hidden = !this.parts.help.hidden;
  }

  // --- panels ---

  message(text, buttons = {}) {
    this.parts["message-text"].textContent = text;
    this.parts["message-buttons"].replaceChildren(...Object.entries(buttons).map(([label, run]) => Object.assign(document.createElement("button"), { textContent: label, onclick: run })));
    this.parts.message.hidden = !text;
  }

  note(text) {
    this.parts.step.textContent = text;
  }

  /** Ask over the planes; resolves with the key of the choice, with the typed text (`input`; null for any but "ok"), or runs and stays. */
  ask(question, choices, { input = false } = {}) {
    const { ask } = this.parts;
    return new Promise((answered) => {
      const field = Object.assign(document.createElement("textarea"), { rows: 2, maxLength: 2000 });
      const answer = (key) => {
        ask.hidden = true;
        this.root.focus({ preventScroll: true });
        answered(input ? (key === "ok" ? field.value.trim() : null) : key);
      };
      const buttons = Object.entries(choices).map(([key, choice]) => Object.assign(document.createElement("button"), { textContent: choice.text ?? choice, onclick: choice.run ?? (() => answer(key)) }));
      buttons.forEach((one, n) => (one.dataset.choice = Object.keys(choices)[n]));
      ask.replaceChildren(Object.assign(document.createElement("p"), { textContent: question }), ...(input ? [field] : []), ...buttons);
      ask.hidden = false;
      (input ? field : buttons[0]).focus();
    });
  }
}
