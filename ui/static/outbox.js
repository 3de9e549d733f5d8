// One organ's steps on their way to the server, one request at a time. No DOM.
//
// A step is first put with the drafts, then sent, and leaves the drafts when the server has confirmed it. If the server turns out to
// have newer steps, `reconcile` says whether they are our own (a confirmation got lost), harmless, or in the way.

import { Conflict } from "./client.js";
import { sameRuns, sharedVoxels } from "./runs.js";

const SEND_MS = 300; // after a stroke; the next ones in that time travel along
const RETRY_MS = 2000;
const BATCH = 50; // steps per request

/**
 * What to do with own unconfirmed steps when the server has `newer` ones.
 *
 * @returns {{own: object[], theirs: object[], shared: number}} own: those the server does not have yet; theirs: those we do not
 *   have yet; shared: how many voxels both change. 0 means the two can be put on top of each other.
 */
export function reconcile(own, newer, user) {
  const kept = [...own];
  const theirs = [];
  for (const step of newer) {
    const [first] = kept;
    const isOurs = first && step.user === user && step.name === first.name && step.kind === first.kind && sameRuns(step.runs, first.runs);
    if (isOurs && !theirs.length) kept.shift();
    else theirs.push(step);
  }
  let shared = 0;
  for (const a of kept) for (const b of theirs) shared += sharedVoxels(a.runs, b.runs);
  return { own: kept, theirs, shared };
}

export class Outbox {
  /**
   * @param {object} parts client and drafts; caseId, organ; shelf, the key of the drafts; revision the server is at;
   *   report(state, detail) gets "saved", "unsaved", "saving", "offline", "refused" or "conflict";
   *   resolve(current) is asked when the server has newer steps; true means `revision` and `queue` are in order again.
   */
  constructor(parts) {
    Object.assign(this, { queue: [], timer: null, running: null, blocked: false, openId: undefined, ...parts });
  }

  get pending() {
    return this.queue.length > 0 || this.running !== null;
  }

  /** Take a step; it is sent soon. */
  add(step) {
    const entry = { step, id: this.#keep(step, this.openId) };
    this.openId = undefined;
    this.queue.push(entry);
    this.touch();
  }

  /** Keep what there is of a stroke that is still being painted. */
  async keepOpen(step) {
    this.openId = this.#keep(step, this.openId);
    await this.openId;
  }

  /** Forget it: it changed nothing. */
  async dropOpen() {
    const id = this.openId;
    this.openId = undefined;
    if (id) await this.drafts.remove([await id]);
  }

  async #keep(step, id) {
    return this.drafts.put(this.shelf, this.revision, step, await id).catch(() => this.report("refused", "this browser cannot keep drafts"));
  }

  /** Something is waiting: send it soon. */
  touch() {
    if (this.blocked) return this.report("conflict");
    if (!this.pending) return this.report("saved");
    this.timer ??= setTimeout(() => this.flush().catch(() => {}), SEND_MS);
    return this.report("unsaved");
  }

  /** Send now; resolves when everything up to this call is stored, rejects when it is not. */
  async flush() {
    clearTimeout(this.timer);
    this.timer = null;
    while (this.queue.length || this.running) {
      if (this.blocked) throw new Error("a newer label exists");
      this.running ??= this.#send().finally(() => (this.running = null));
      await this.running;
    }
    this.report("saved");
  }

  async #send() {
    this.report("saving");
    const batch = this.queue.slice(0, BATCH);
    try {
      this.revision = await this.client.postSteps(this.caseId, this.organ, batch.map(({ step }) => step), this.revision);
      this.queue.splice(0, batch.length);
      await this.#confirm(batch);
    } catch (error) {
      if (!(error instanceof Conflict)) return this.#failed(error);
      this.blocked = true;
      this.report("conflict");
      this.blocked = !(await this.resolve(error.current));
    }
    return undefined;
  }

  async #confirm(gone) {
    const ids = await Promise.all(gone.map(({ id }) => id));
    const waiting = await Promise.all(this.queue.map(async ({ step, id }) => ({ shelf: this.shelf, step, id: await id })));
    await this.drafts.confirm(ids, waiting, this.revision);
  }

  #failed(error) {
    if (error.status && error.status < 500) this.report("refused", error.message); // trying again would be refused again
    else {
      this.report("offline");
      this.timer ??= setTimeout(() => this.flush().catch(() => {}), RETRY_MS);
    }
    throw error;
  }

  /** After a conflict: the server is at `revision`, and `steps` wait instead of what was waiting. */
  async replaceQueue(steps, revision) {
    this.revision = revision;
    const old = this.queue;
    this.queue = steps.map((step) => old.find((entry) => entry.step === step) ?? { step, id: this.#keep(step) });
    await this.#confirm(old.filter((entry) => !this.queue.includes(entry)));
  }
}
