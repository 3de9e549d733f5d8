// The server as the editor sees it, and the loop that saves. No DOM.

const AUTOSAVE_MS = 800; // after the last stroke
const AUTOSAVE_LATEST_MS = 2000; // after the first unsaved one: what a crash may cost at most
const RETRY_MS = 3000;

export class Conflict extends Error {
  constructor(current) {
    super(`someone else saved revision ${current}`);
    this.current = current;
  }
}

async function check(response) {
  if (response.ok) return response;
  let detail = response.statusText;
  try {
    detail = (await response.json()).detail ?? detail;
  } catch { /* a proxy's HTML page: the status has to do */ }
  const error = new Error(typeof detail === "string" ? detail : JSON.stringify(detail));
  error.status = response.status;
  throw error;
}

export class Client {
  constructor(base = "/api/v1") {
    this.base = base;
  }

  url(...parts) {
    return [this.base, ...parts.map(encodeURIComponent)].join("/");
  }

  async json(method, parts, body = undefined) {
    const options = { method, headers: { Accept: "application/json" } };
    if (body !== undefined) Object.assign(options, { body: JSON.stringify(body), headers: { ...options.headers, "Content-Type": "application/json" } });
    const response = await check(await fetch(this.url(...parts), options));
    return response.status === 204 ? null : response.json();
  }

  /** Bytes of a volume; null where the server has none (404). */
  async bytes(...parts) {
    const response = await fetch(this.url(...parts));
    if (response.status === 404) return null;
    await check(response);
    return { buffer: await response.arrayBuffer(), revision: unquote(response.headers.get("ETag")) };
  }

  /** Compare-and-set: the runs are stored only on top of `revision`. Returns the new revision; raises Conflict. */
  async putRuns(caseId, organ, runs, { revision, seconds }) {
    const url = `${this.url("cases", caseId, "labels", organ)}?seconds=${seconds.toFixed(1)}`;
    const packed = new Blob([runs]).stream().pipeThrough(new CompressionStream("gzip"));
    const body = await new Response(packed).arrayBuffer();
    const headers = { "If-Match": `"${revision}"`, "Content-Type": "application/octet-stream" };
    const response = await fetch(url, { method: "PUT", headers, body });
    if (response.status === 412) throw new Conflict((await response.json()).current);
    return (await (await check(response)).json()).rev;
  }
}

function unquote(etag) {
  const found = /"(\d+)/.exec(etag ?? "");
  return found ? Number(found[1]) : 0;
}

/** Seconds the annotator was really at work: time between inputs counts only where it is short. */
export class Stopwatch {
  constructor(idleMs = 15000) {
    Object.assign(this, { idleMs, last: 0, seconds: 0 });
  }

  touch(now = performance.now()) {
    if (this.last && now - this.last < this.idleMs) this.seconds += (now - this.last) / 1000;
    this.last = now;
  }

  /** Seconds since they were last taken. */
  take() {
    const seconds = this.seconds;
    this.seconds = 0;
    return seconds;
  }
}

/**
 * Saves one organ's edits soon after every stroke, one request at a time.
 * `report(state, detail)` gets "saved", "unsaved", "saving", "offline", "refused" or "conflict".
 */
export class Saver {
  constructor(client, { caseId, organ, edit, revision, stopwatch, report }) {
    Object.assign(this, { client, caseId, organ, edit, revision, stopwatch, report });
    this.timer = null;
    this.firstUnsaved = 0;
    this.running = null;
    this.blocked = false; // after a conflict nothing is sent until the annotator has looked
  }

  get pending() {
    return this.edit.dirty || this.running !== null;
  }

  /** Something changed: save soon. */
  touch() {
    if (!this.edit.dirty) return this.running ? undefined : this.report("saved");
    if (this.blocked) return this.report("conflict");
    const now = performance.now();
    this.firstUnsaved ||= now;
    clearTimeout(this.timer);
    const wait = Math.max(0, Math.min(AUTOSAVE_MS, this.firstUnsaved + AUTOSAVE_LATEST_MS - now));
    this.timer = setTimeout(() => this.flush().catch(() => {}), wait);
    return this.report("unsaved");
  }

  /** Save now; resolves when everything up to this call is stored, rejects when it is not. */
  async flush() {
    clearTimeout(this.timer);
    if (this.running) await this.running.catch(() => {});
    if (!this.edit.dirty) return;
    this.running = this.send();
    try {
      await this.running;
    } finally {
      this.running = null;
    }
    this.touch();
  }

  async send() {
    const runs = this.edit.takeRuns();
    this.firstUnsaved = 0;
    this.report("saving");
    const seconds = this.stopwatch.take();
    try {
      this.revision = await this.client.putRuns(this.caseId, this.organ, runs, { revision: this.revision, seconds });
      this.edit.confirm();
    } catch (error) {
      this.edit.putBack();
      this.stopwatch.seconds += seconds;
      await this.failed(error);
      throw error;
    }
  }

  async failed(error) {
    if (error instanceof Conflict) {
      this.blocked = true;
      this.report("conflict", error.current);
    } else if (error.status) {
      this.report("refused", error.message); // trying again would be refused again
    } else {
      this.report("offline");
      this.timer = setTimeout(() => this.flush().catch(() => {}), RETRY_MS);
    }
  }
}
