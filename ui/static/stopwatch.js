// Active seconds per organ and component: time between inputs counts only where it is short. No DOM.

export class Stopwatch {
  constructor(idleMs = 15000) {
    Object.assign(this, { idleMs, last: 0, key: keyOf({}), spent: new Map() });
  }

  /** From now on time belongs to this organ and component. */
  turnTo({ organ = null, component = null }, now = performance.now()) {
    if (this.last) this.touch(now);
    this.key = keyOf({ organ, component });
  }

  touch(now = performance.now()) {
    if (this.last && now - this.last < this.idleMs) this.spent.set(this.key, (this.spent.get(this.key) ?? 0) + (now - this.last) / 1000);
    this.last = now;
  }

  /** Seconds at the current organ and component since they were last taken. */
  take() {
    const seconds = this.spent.get(this.key) ?? 0;
    this.spent.delete(this.key);
    return seconds;
  }

  /** Everything not taken yet, as [{organ, component, seconds}]. */
  takeAll() {
    const entries = [...this.spent].map(([key, seconds]) => ({ ...JSON.parse(key), seconds }));
    this.spent.clear();
    return entries;
  }

  /** What could not be delivered counts as not taken. */
  putBack(entries) {
    for (const { seconds, ...rest } of entries) this.spent.set(keyOf(rest), (this.spent.get(keyOf(rest)) ?? 0) + seconds);
  }
}

function keyOf({ organ = null, component = null }) {
  return JSON.stringify({ organ, component });
}
