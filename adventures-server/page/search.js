// Retrieval alone: a question to the passages nearest to it.

import { search } from './api.js';
import { byId, button, el, tell } from './dom.js';
import { Filters } from './filters.js';
import { kept, problemNote } from './problem.js';
import { withKey } from './settings.js';
import { figure, meter, shown, sourceName } from './sources.js';
import { settings } from './store.js';

export class Search {
  #app;
  #results = byId('results');
  #filters = new Filters(byId('filters'), () => this.#run());
  #controller = null;
  #set = false;

  /** `app` has `info` and `panel`. */
  constructor(app) {
    this.#app = app;
    byId('search-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#run();
    });
    byId('add-filter').addEventListener('click', () => this.#filters.add());
    for (const id of ['search-k', 'search-hybrid']) byId(id).addEventListener('change', () => this.#run());
  }

  focus() {
    byId('query').focus();
  }

  update() {
    const { library } = this.#app.info ?? {};
    byId('search-go').disabled = !library;
    byId('add-filter').hidden = !library || !this.#filters.apply(library.columns);
    if (!library || this.#set) return;
    this.#set = true;
    const { k, hybrid } = settings.get();
    byId('search-k').value = k ?? Math.max(library.k, 8);
    byId('search-hybrid').checked = hybrid ?? library.hybrid;
  }

  async #run() {
    const query = byId('query').value.trim();
    if (!query || !this.#app.info?.library) return;
    this.#controller?.abort();
    const controller = new AbortController();
    this.#controller = controller;
    const k = byId('search-k').valueAsNumber;
    const body = { query, hybrid: byId('search-hybrid').checked };
    if (Number.isInteger(k)) body.k = k;
    try {
      const where = this.#filters.where();
      if (Object.keys(where).length) body.where = where;
    } catch (error) {
      this.#results.replaceChildren(problemNote({ kind: 'failed', message: error.message }, () => this.#run()));
      return;
    }
    this.#results.setAttribute('aria-busy', 'true');
    tell('Searching');
    try {
      const { hits, truncated } = await withKey(() => search(body, controller.signal));
      if (controller === this.#controller) this.#draw(hits, truncated);
    } catch (problem) {
      if (controller.signal.aborted) return;
      this.#results.replaceChildren(problemNote(kept(problem), () => this.#run()));
      tell(problem.message);
    } finally {
      if (controller === this.#controller) this.#results.setAttribute('aria-busy', 'false');
    }
  }

  #draw(hits, truncated) {
    const count = hits.length === 0 ? 'No passage fits.' : hits.length === 1 ? 'One passage' : `${hits.length} passages, the best first`;
    const says = truncated ? `${count} (looked for by the beginning of a long question only)` : count;
    tell(says);
    const least = this.#app.info.library.min_similarity;
    const items = hits.map((hit, i) => this.#item(hits, hit, i, hit.similarity < least));
    this.#results.replaceChildren(el('p', { class: 'count', text: says }), el('ol', { class: 'hits' }, ...items));
  }

  #item(hits, hit, i, far) {
    const name = sourceName(hit);
    const open = button(name, () => this.#app.panel.show(hits, i + 1, open), { class: 'hit-name', dir: 'auto' });
    open.setAttribute('aria-label', `Open passage ${i + 1}: ${name}`);
    const row = hit.source?.row ?? {};
    const facts = Object.entries(hit.metadata ?? {}).filter(([column, value]) => !(column in row) && value !== null && shown(value).length <= 40);
    return el('li', { class: far ? 'hit far' : 'hit' },
      el('div', { class: 'row' }, el('span', { class: 'number', 'aria-hidden': 'true', text: String(i + 1) }), open,
        meter(hit.similarity), el('b', { class: 'figure', text: figure(hit.similarity), title: 'Cosine similarity' })),
      el('p', { class: 'passage', text: hit.text, dir: 'auto' }),
      el('p', { class: 'facts' },
        ...facts.map(([column, value]) => el('span', { class: 'fact', dir: 'auto' }, el('span', { text: `${column} ` }), shown(value))),
        far ? el('span', { class: 'fact warn', text: 'too far from the question to be used in an answer' }) : null));
  }
}
