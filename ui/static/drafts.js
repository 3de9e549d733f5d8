// Steps the server has not confirmed, in IndexedDB: they outlive a browser that dies and a server that is away.
//
// Every step lies under its shelf (user, round, case, organ) until the server has it; an open stroke lies there too, as far as it has got.

const STORE = "steps";

export class Drafts {
  /** Opens the database; without one (a private window) edits are kept in memory only, and `durable` is false. */
  static async open(name = "atlas_ray") {
    try {
      const request = indexedDB.open(name, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true }).createIndex("shelf", "shelf");
      return new Drafts(await done(request));
    } catch {
      return new Drafts(null);
    }
  }

  constructor(database) {
    Object.assign(this, { database, durable: database !== null });
  }

  #store(mode) {
    return this.database.transaction(STORE, mode, mode === "readwrite" ? { durability: "strict" } : undefined).objectStore(STORE);
  }

  /** Keep a step; resolves with its id once it is on disk. `id` replaces an earlier state of the same step. */
  async put(shelf, parent, step, id = undefined) {
    if (!this.durable) return undefined;
    const record = { shelf: JSON.stringify(shelf), parent, step, ...(id === undefined ? {} : { id }) };
    return done(this.#store("readwrite").put(record));
  }

  async remove(ids) {
    return this.confirm(ids, [], null);
  }

  /** These steps are at the server; the ones still waiting (as `put` takes them) now stand on another revision. All or nothing. */
  async confirm(ids, waiting, parent) {
    if (!this.durable) return;
    const store = this.#store("readwrite");
    const changes = ids.filter((id) => id !== undefined).map((id) => store.delete(id));
    for (const { id, shelf, step } of waiting) if (id !== undefined) changes.push(store.put({ id, shelf: JSON.stringify(shelf), parent, step }));
    await Promise.all(changes.map(done));
  }

  /** The shelf's steps, oldest first: [{id, parent, step}]. */
  async list(shelf) {
    return this.durable ? done(this.#store("readonly").index("shelf").getAll(JSON.stringify(shelf))) : [];
  }

  /** Every shelf that holds something. */
  async shelves() {
    if (!this.durable) return [];
    const records = await done(this.#store("readonly").getAll());
    return [...new Set(records.map((record) => record.shelf))].map((shelf) => JSON.parse(shelf));
  }
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
