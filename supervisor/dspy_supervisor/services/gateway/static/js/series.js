// What the classes did of late, second by second as it was seen here, and minute by minute from the supervisor's history.

const MOST = 1500; // moments that are kept of a class
const SMOOTH_S = 10; // rates are means over so long
const BLANK_S = 5; // news that far apart have a gap between them
const CHANGES = 200;

/** The fields of one class, each an array as long as `at`; null is what is not known. */
function fields() {
  return { at: [], pending: [], inflight: [], limit: [], done: [], failed: [], p50: [], p99: [], why: [] };
}

/** All classes over time. */
export class Series {
  constructor() {
    this.live = new Map(); // class -> fields
    this.past = new Map();
    this.counted = new Map(); // class -> [[at, done, failed]]
    this.changes = []; // {at, class, before, after, why}, the newest last
    this.last = null;
  }

  /** Add a status that came at epoch seconds. */
  push(at, status) {
    for (const [name, one] of Object.entries(status.classes)) {
      const to = this.of(this.live, name);
      if (to.at.length && at - to.at.at(-1) > BLANK_S) add(to, { at: to.at.at(-1) + 1 });
      const [done, failed] = this.rates(name, at, one);
      const told = status.latency?.[name] ?? {};
      const why = one.limit_why ?? "";
      add(to, { at, pending: one.pending, inflight: one.inflight, limit: one.limit, done, failed, why,
        p50: told.total_p50_s, p99: told.total_p99_s });
      this.note(at, name, one, this.last?.classes?.[name]);
    }
    this.last = status;
  }

  /** Take the rows of /v1/history in place of those that were there. */
  remember(rows) {
    this.past = new Map();
    for (const row of rows) {
      for (const [name, one] of Object.entries(row.classes ?? {})) {
        const step = row.seconds || 60;
        add(this.of(this.past, name), { at: row.at, pending: one.pending, inflight: one.inflight, limit: one.limit,
          done: per(one.done, step), failed: per(one.failed, step), why: (one.limit_reason ?? "").replaceAll("_", " "),
          p50: one.total_p50_s, p99: one.total_p99_s });
      }
    }
  }

  /** Return the fields of a class since epoch seconds: the history, and from where it was looked on what was seen. */
  since(name, from) {
    const live = this.live.get(name) ?? fields();
    const past = this.past.get(name) ?? fields();
    const seenFrom = live.at[0] ?? Infinity;
    const result = fields();
    for (const [source, begin, end] of [[past, from, seenFrom], [live, from, Infinity]]) {
      for (let place = 0; place < source.at.length; place++) {
        if (source.at[place] < begin || source.at[place] >= end) continue;
        for (const key of Object.keys(result)) result[key].push(source[key][place]);
      }
    }
    return result;
  }

  /** Return the last `number` values of a field of a class. */
  tail(name, field, number) {
    return this.live.get(name)?.[field].slice(-number) ?? [];
  }

  /** Return whether nothing is known to have happened. */
  isEmpty() {
    const idle = (one) => !(one.pending || one.inflight || one.done || one.failed);
    return this.past.size === 0 && Object.values(this.last?.classes ?? {}).every(idle);
  }

  of(where, name) {
    if (!where.has(name)) where.set(name, fields());
    return where.get(name);
  }

  rates(name, at, one) {
    const counted = this.counted.get(name) ?? this.counted.set(name, []).get(name);
    if (counted.length && one.done + one.failed < counted.at(-1)[1] + counted.at(-1)[2]) counted.length = 0; // a new start
    counted.push([at, one.done, one.failed]);
    while (counted.length > 2 && at - counted[1][0] >= SMOOTH_S) counted.shift();
    const [then, done, failed] = counted[0];
    return at - then < 1 ? [null, null] : [(one.done - done) / (at - then), (one.failed - failed) / (at - then)];
  }

  note(at, name, one, before) {
    if (!before || before.limit === one.limit) return;
    this.changes.push({ at, class: name, before: before.limit, after: one.limit, why: one.limit_why ?? "" });
    if (this.changes.length > CHANGES) this.changes.shift();
  }
}

function add(to, values) {
  for (const key of Object.keys(to)) {
    to[key].push(values[key] ?? (key === "why" ? "" : null));
    if (to[key].length > MOST) to[key].shift();
  }
}

function per(number, seconds) {
  return typeof number === "number" ? number / seconds : null;
}
