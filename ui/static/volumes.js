// A case's volumes: what the first view needs, fetched at once, and the next case's in memory before it is asked for. No DOM.

import { parseNifti } from "./nifti.js";

const PREFETCH_VOXELS = 200e6; // larger ones would cost a gigabyte beside the case being edited

export class Volumes {
  constructor(client) {
    Object.assign(this, { client, next: null });
  }

  /** {info, components} as the server has them now. */
  async describe(caseId) {
    const [info, { components }] = await Promise.all([this.client.json("GET", ["cases", caseId]), this.client.json("GET", ["cases", caseId, "components"])]);
    return { info, components };
  }

  /**
   * The voxels that the first view of a described case needs.
   *
   * @returns {{image, labels, heat, first}} image as `parseNifti` gives it; labels and heat as voxels (heat null where there is
   *   none); first, the organ to begin with as `organ` gives it
   */
  async load(described) {
    const { case_id: caseId } = described.info;
    const ahead = this.next?.caseId === caseId ? await this.next.loaded.catch(() => null) : null;
    this.next = null;
    const isFresh = ahead && JSON.stringify(revisions(ahead.info)) === JSON.stringify(revisions(described.info));
    return isFresh ? ahead : this.#voxels(described);
  }

  /** Fetch the case this annotator would get next, unless that is done or it is too large. */
  async prefetch() {
    const item = await this.client.json("GET", ["cases", "peek"]);
    if (!item || this.next?.caseId === item.case_id) return;
    const described = await this.describe(item.case_id);
    const { info } = described;
    if (info.shape.reduce((a, b) => a * b) > PREFETCH_VOXELS) return;
    const loaded = this.#voxels(described).then((voxels) => ({ info, ...voxels }));
    this.next = { caseId: item.case_id, loaded };
    await loaded;
  }

  async #voxels({ info, components }) {
    const { case_id: caseId } = info;
    const organ = info.organs.find((o) => o.name === components[0]?.organ) ?? info.organs.find((o) => o.queried) ?? info.organs[0];
    const labels = this.#volume(caseId, "labels");
    const isUntouched = revisions(info).every((rev) => rev === 0);
    const first = isUntouched ? labels.then((map) => this.#drafted(caseId, organ, map)) : this.organ(caseId, organ.name);
    const [image, heat, map, taken] = await Promise.all([this.#volume(caseId, "image"), this.#volume(caseId, "heat"), labels, first]);
    return { image, labels: map.data, heat: heat && heat.data, first: taken };
  }

  /** As `organ`, out of a label map nobody has edited: one volume less to wait for. */
  #drafted(caseId, { name, label_id: id }, { data, revision }) {
    if (revision !== 0) return this.organ(caseId, name); // somebody was faster
    const mask = new Uint8Array(data.length);
    for (let voxel = 0; voxel < data.length; voxel++) if (data[voxel] === id) mask[voxel] = 1;
    return { name, mask, revision, steps: [] };
  }

  /** One organ's own mask with the steps that made it: {name, mask, revision, steps}. */
  async organ(caseId, name) {
    const [{ buffer, revision }, history] = await Promise.all([this.client.bytes("cases", caseId, "labels", name), this.client.steps(caseId, name)]);
    const { data } = parseNifti(buffer);
    const mask = new Uint8Array(data.buffer, data.byteOffset, data.length);
    return { name, mask, revision, steps: history.steps.filter((step) => step.revision_id <= revision) };
  }

  /** The label map as it stands. */
  async labels(caseId) {
    return (await this.#volume(caseId, "labels")).data;
  }

  /** Where an organ's attention is, one bit per criterion; null where it has none. */
  async flags(caseId, organ) {
    return (await this.#volume(caseId, "attention", organ))?.data ?? null;
  }

  async #volume(caseId, ...parts) {
    const file = await this.client.bytes("cases", caseId, ...parts);
    return file && { ...parseNifti(file.buffer), revision: file.revision };
  }
}

function revisions(info) {
  return info.organs.map((organ) => organ.rev);
}
