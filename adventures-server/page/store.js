// What the browser keeps: conversations and settings for good, the key until the tab is closed.

const PREFIX = 'adventures.';
const CHAT = `${PREFIX}chat.`;

/** A browser may keep nothing; then it is kept while the page is open. */
class Area {
  #storage = null;
  #memory = new Map();

  constructor(name) {
    try {
      this.#storage = window[name];
      this.#storage.getItem(PREFIX);
    } catch {
      this.#storage = null;
    }
  }

  get(key) {
    return this.#memory.get(key) ?? this.#storage?.getItem(key) ?? null;
  }

  /** Returns whether it is kept. */
  set(key, value) {
    try {
      if (!this.#storage) throw new Error('no storage');
      this.#storage.setItem(key, value);
      this.#memory.delete(key);
      return true;
    } catch {
      this.#memory.set(key, value);
      return false;
    }
  }

  remove(key) {
    this.#memory.delete(key);
    this.#storage?.removeItem(key);
  }

  keys(prefix) {
    const stored = this.#storage ? Array.from({ length: this.#storage.length }, (_, i) => this.#storage.key(i)) : [];
    return [...new Set([...stored, ...this.#memory.keys()])].filter((key) => key.startsWith(prefix));
  }
}

const local = new Area('localStorage');
const session = new Area('sessionStorage');

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Of what was stored, by whatever version of the page, what this one can show. */
function checked(stored, id) {
  if (!stored || !Array.isArray(stored.turns)) return null;
  const text = (value) => (typeof value === 'string' ? value : '');
  const turns = stored.turns.filter((turn) => turn && typeof turn.question === 'string').map((turn) => ({
    question: turn.question,
    answer: text(turn.answer),
    // An answer that was being written when the page was closed has no more to come.
    state: turn.state === 'running' ? 'cut' : text(turn.state) || 'done',
    sources: Array.isArray(turn.sources) ? turn.sources.filter((hit) => hit && typeof hit.text === 'string') : [],
    cited: Array.isArray(turn.cited) ? turn.cited : [],
    dropped: Number(turn.dropped) || 0,
    truncated: turn.truncated === true,
    finish: text(turn.finish),
    problem: turn.problem && typeof turn.problem.message === 'string' ? turn.problem : null,
  }));
  return { id, title: text(stored.title), created: Number(stored.created) || 0, updated: Number(stored.updated) || 0, turns };
}

export function newId() {
  // Not randomUUID: browsers hide it from pages without TLS.
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export const chats = {
  /** All conversations, the latest first. */
  list() {
    const all = local.keys(CHAT).map((key) => this.get(key.slice(CHAT.length))).filter(Boolean);
    return all.sort((a, b) => b.updated - a.updated);
  },

  get(id) {
    return checked(parse(local.get(CHAT + id)), id);
  },

  /** Returns whether it is kept beyond this page. */
  save(chat) {
    return local.set(CHAT + chat.id, JSON.stringify(chat));
  },

  remove(id) {
    local.remove(CHAT + id);
  },

  clear() {
    for (const key of local.keys(CHAT)) local.remove(key);
  },

  /** Calls `changed` with the id of a conversation that another tab has changed. */
  watch(changed) {
    addEventListener('storage', (event) => {
      if (event.key === null || event.key.startsWith(CHAT)) changed(event.key?.slice(CHAT.length) ?? null);
    });
  },
};

/** What is null is as the service has it. */
const SETTINGS = { temperature: null, max_tokens: null, k: null, hybrid: null, min_similarity: null };

export const settings = {
  get() {
    const stored = parse(local.get(`${PREFIX}settings`)) ?? {};
    const fits = (name) => typeof stored[name] === (name === 'hybrid' ? 'boolean' : 'number');
    return Object.fromEntries(Object.keys(SETTINGS).map((name) => [name, fits(name) ? stored[name] : null]));
  },

  set(values) {
    local.set(`${PREFIX}settings`, JSON.stringify({ ...SETTINGS, ...values }));
  },
};

export const key = {
  get: () => session.get(`${PREFIX}key`),
  set: (value) => session.set(`${PREFIX}key`, value),
  remove: () => session.remove(`${PREFIX}key`),
};

export const theme = {
  get: () => (['light', 'dark'].includes(local.get(`${PREFIX}theme`)) ? local.get(`${PREFIX}theme`) : 'system'),
  set: (value) => (value === 'system' ? local.remove(`${PREFIX}theme`) : local.set(`${PREFIX}theme`, value)),
};
