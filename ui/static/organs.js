// The organs of the open case: each its own mask, history and outbox, and what happens when somebody else was faster. No DOM.

import { OrganEdit, rebuildStacks } from "./edit.js";
import { Outbox, reconcile } from "./outbox.js";
import { Packed, applyRuns, countVoxels, eachVoxel, encodeRuns, inverseRuns } from "./runs.js";

const STROKE_DRAFT_MS = 1000;

/** One organ taken up: its edit and its outbox. At rest, its mask is packed. */
export class OrganState {
  /**
   * @param {object} organ as the server describes it
   * @param {object} taken {mask, revision, steps} as `Volumes.organ` gives it
   * @param {object} context client, drafts, caseId, shelf, user, dims, spacing, report(state, detail) and
   *   ask({organ, shared, own, theirs, mask}), which resolves with "mine" or "theirs"
   */
  constructor(organ, { mask, revision, steps }, context) {
    const { client, drafts, caseId, shelf, dims, spacing } = context;
    Object.assign(this, { organ, context, packed: null, lastDraft: 0, status: "saved", detail: undefined });
    this.edit = new OrganEdit({ mask, dims, spacing, steps });
    const report = (status, detail) => {
      Object.assign(this, { status, detail });
      context.report(this);
    };
    this.outbox = new Outbox({ client, drafts, caseId, organ: organ.name, shelf, revision, report, resolve: () => this.catchUp() });
  }

  /** Give the memory of the mask back; edits wait for `wake`. */
  rest() {
    this.packed = new Packed(this.edit.mask);
    this.edit.mask = null;
  }

  wake() {
    if (!this.packed) return;
    this.edit.mask = this.packed.unpack();
    this.packed = null;
  }

  /** A step was made: on its way. */
  send(step, { seconds = 0, component = null } = {}) {
    if (step) this.outbox.add({ ...step, seconds, component });
    return step;
  }

  /** Keep what there is of the open stroke, once a second. */
  keepStroke(now = performance.now()) {
    if (now - this.lastDraft < STROKE_DRAFT_MS || !this.edit.stroke?.voxels.length) return;
    this.lastDraft = now;
    this.outbox.keepOpen({ ...this.edit.soFar(), seconds: 0, component: null }).catch(() => {});
  }

  /**
   * Take up steps of an earlier session that the server may not have. The organ goes back to the revision they were made on, so
   * that what happened since is met like any other conflict when they are sent.
   */
  async replayDrafts(steps) {
    const records = await this.context.drafts.list(this.outbox.shelf);
    if (!records.length) return 0;
    const { edit, outbox } = this;
    const { parent } = records[0];
    for (const step of steps.filter((s) => s.revision_id > parent).reverse()) applyRuns(edit.mask, inverseRuns(step.runs));
    for (const { step } of records) applyRuns(edit.mask, step.runs);
    Object.assign(edit, rebuildStacks([...steps.filter((s) => s.revision_id <= parent), ...records.map(({ step }) => step)]));
    Object.assign(outbox, { revision: parent, queue: records.map(({ id, step }) => ({ step, id: Promise.resolve(id) })) });
    outbox.touch();
    return records.length;
  }

  /** The server has newer steps. True once the own ones stand on top of them. */
  async catchUp() {
    const { edit, outbox, context } = this;
    const { rev, steps } = await context.client.steps(outbox.caseId, this.organ.name);
    const newer = steps.filter((step) => step.revision_id > outbox.revision);
    let choice = null;
    const first = reconcile(this.#waiting(), newer, context.user);
    if (first.shared) choice = await context.ask({ state: this, ...first });
    while (edit.stroke) await new Promise((free) => setTimeout(free, 50));
    const atRest = this.packed !== null;
    this.wake();
    // Nothing below waits until the mask is right again: what was painted while we asked is in the queue.
    const { own, theirs, shared } = reconcile(this.#waiting(), newer, context.user);
    // An own undo speaks of the step before it; with somebody's step in between it would mean another.
    const asTheyAre = !shared && (!theirs.length || own.every(({ kind }) => kind === "edit"));
    if (asTheyAre) edit.slipUnder(own, theirs, [...steps, ...own]);
    const onTop = asTheyAre ? own : this.#putOnTop(own, theirs, steps, choice ?? "mine");
    if (atRest) this.rest();
    await outbox.replaceQueue(onTop, rev);
    context.changed(this);
    return true;
  }

  #waiting() {
    return this.outbox.queue.map(({ step }) => step);
  }

  /**
   * Both changed the same voxels: the own changes become one step on top of theirs; where theirs is wanted, that step is taken back
   * at once, so that the history holds it and redo brings it back.
   */
  #putOnTop(own, theirs, steps, choice) {
    const { edit } = this;
    const wanted = valuesAfter(edit.mask, own);
    edit.mask.set(this.withOthers(own, theirs));
    Object.assign(edit, rebuildStacks(steps));
    const step = edit.write("own edits on the newer label", wanted);
    if (!step) return [];
    const seconds = own.reduce((sum, one) => sum + (one.seconds ?? 0), 0);
    const made = [{ ...step, seconds, component: null }];
    if (choice === "theirs") made.push({ ...edit.undo(), seconds: 0, component: null });
    return made;
  }

  /** The mask with somebody's steps in place of the own ones. */
  withOthers(own, theirs) {
    const mask = this.edit.mask.slice();
    for (const { runs } of [...own].reverse()) applyRuns(mask, inverseRuns(runs));
    for (const { runs } of theirs) applyRuns(mask, runs);
    return mask;
  }

  /** The mask at an earlier revision, from the steps since; null where they are not all known. */
  async maskAt(revision) {
    const { steps } = await this.context.client.steps(this.outbox.caseId, this.organ.name);
    const since = steps.filter((step) => step.revision_id > revision);
    if (this.outbox.pending || since.length !== this.outbox.revision - revision) return null;
    const mask = this.edit.mask.slice();
    for (const { runs } of since.reverse()) applyRuns(mask, inverseRuns(runs));
    return mask;
  }
}

/** The values the voxels of some steps have now, each voxel once, as runs. */
function valuesAfter(mask, steps) {
  const voxels = new Set();
  for (const { runs } of steps) eachVoxel(runs, (voxel) => voxels.add(voxel));
  return encodeRuns(Uint32Array.from(voxels).sort(), mask);
}

export function stepVoxels(steps) {
  return steps.reduce((sum, { runs }) => sum + countVoxels(runs), 0);
}
