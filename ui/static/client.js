// The server as the editor sees it. No DOM.

import { inflateRuns, packRuns, unpackRuns } from "./runs.js";

export const HISTORY_STEPS = 200;

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

  /** Compare-and-set: the steps are appended only on top of `revision`. Returns the new revision; raises Conflict. */
  async postSteps(caseId, organ, steps, revision) {
    const packed = await Promise.all(steps.map(async ({ name, kind, seconds = 0, component = null, runs }) => ({ name, kind, seconds, component, runs: await packRuns(runs) })));
    const headers = { "If-Match": `"${revision}"`, "Content-Type": "application/json", Accept: "application/json" };
    const response = await fetch(this.url("cases", caseId, "labels", organ, "steps"), { method: "POST", headers, body: JSON.stringify({ steps: packed }) });
    if (response.status === 412) throw new Conflict((await response.json()).current);
    return (await (await check(response)).json()).rev;
  }

  /** The organ's latest steps, oldest first, with their runs. Returns {rev, steps}. */
  async steps(caseId, organ, { after = null } = {}) {
    const query = after === null ? "" : `&after=${after}`;
    const response = await check(await fetch(`${this.url("cases", caseId, "labels", organ, "steps")}?last=${HISTORY_STEPS}${query}`));
    const { rev, steps } = await response.json();
    return { rev, steps: await Promise.all(steps.map(async (step) => ({ ...step, runs: await unpackRuns(step.runs) }))) };
  }

  /** What a tool of the server would change, as runs; nothing is saved. */
  async propose(caseId, organ, request) {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request) };
    const response = await check(await fetch(this.url("cases", caseId, "labels", organ, "propose"), options));
    return inflateRuns(new Uint8Array(await response.arrayBuffer()));
  }
}

function unquote(etag) {
  const found = /"(\d+)/.exec(etag ?? "");
  return found ? Number(found[1]) : 0;
}
