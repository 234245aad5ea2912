// The panel that shows a passage: its text, how near it is, and the row that it comes from.

import { byId, copyButton, el, iconButton } from './dom.js';

const narrow = matchMedia('(max-width: 1099px)');

/** A value as people read it. */
export function shown(value) {
  if (value === null || value === undefined) return '–';
  if (typeof value === 'string') return value;
  if (typeof value === 'number' || typeof value === 'boolean') return String(value);
  return JSON.stringify(value);
}

/** What a source is called: the key of its row. */
export function sourceName(hit) {
  const values = Object.values(hit.source?.row ?? {}).map(shown);
  return values.join(' · ') || String(hit.id ?? 'passage');
}

/** A table's name is the last part of where it is. */
export function tableName(table) {
  const parts = String(table ?? '').split(/[/\\]/).filter(Boolean);
  return parts.at(-1) ?? '';
}

/** A similarity as it is shown. */
export function figure(similarity) {
  return (Number(similarity) || 0).toFixed(2);
}

export function meter(similarity) {
  const bar = el('span', { class: 'bar' });
  bar.style.width = `${Math.max(0, Math.min(1, similarity)) * 100}%`;
  return el('span', { class: 'meter', 'aria-hidden': 'true' }, bar);
}

function entries(object, kind) {
  const rows = Object.entries(object).map(([name, value]) =>
    el('div', {}, el('dt', { text: name, dir: 'auto' }), el('dd', { text: shown(value), dir: 'auto' })));
  return el('dl', { class: kind }, ...rows);
}

export class SourcePanel {
  #node = byId('panel');
  #opener = null;
  #sources = [];
  #at = 0;

  constructor() {
    narrow.addEventListener('change', () => {
      if (this.open) this.#cover();
    });
  }

  get open() {
    return !this.#node.hidden;
  }

  /** Shows the source of a number, from 1 on; the focus goes back to `opener` afterwards. */
  show(sources, number, opener) {
    this.#sources = sources;
    this.#at = number - 1;
    this.#opener = opener;
    this.#draw();
    this.#node.hidden = false;
    document.body.classList.add('with-panel');
    this.#cover();
    byId('panel-title').focus();
  }

  /** Where the panel covers the page, the page is out of reach. */
  #cover() {
    for (const id of ['sidebar', 'main']) byId(id).inert = narrow.matches;
  }

  close(focus = true) {
    if (!this.open) return;
    this.#node.hidden = true;
    document.body.classList.remove('with-panel');
    byId('main').inert = false;
    byId('sidebar').inert = false;
    document.dispatchEvent(new Event('panel-closed'));
    if (focus && this.#opener?.isConnected) this.#opener.focus();
    this.#opener = null;
  }

  #step(by) {
    this.#at += by;
    this.#draw();
    byId('panel-title').focus();
  }

  #draw() {
    const hit = this.#sources[this.#at];
    const { table, version, row = {} } = hit.source ?? {};
    const metadata = Object.fromEntries(Object.entries(hit.metadata ?? {}).filter(([name]) => !(name in row)));
    const many = this.#sources.length > 1;
    const similarity = Number(hit.similarity) || 0;
    const step = (name, label, by) => iconButton(name, label, () => this.#step(by), { disabled: !this.#sources[this.#at + by] });
    const score = Number(hit.score);
    const fused = Number.isFinite(score) && Math.abs(score - similarity) > 1e-6;
    this.#node.replaceChildren(
      el('header', {},
        el('h2', { id: 'panel-title', tabindex: '-1', text: many ? `Source ${this.#at + 1} of ${this.#sources.length}` : 'Source' }),
        many ? step('back', 'Previous source', -1) : null,
        many ? step('next', 'Next source', 1) : null,
        copyButton('Copy the passage', () => hit.text),
        iconButton('close', 'Close the source', () => this.close())),
      el('div', { class: 'panel-body', tabindex: '0', role: 'region', 'aria-labelledby': 'panel-title' },
        el('blockquote', { class: 'passage', text: hit.text, dir: 'auto' }),
        el('div', { class: 'similarity' },
          el('span', { text: 'Similarity' }), meter(similarity), el('b', { text: figure(similarity) })),
        fused ? el('p', { class: 'hint', text: `Rank score of the hybrid search: ${score.toFixed(4)}` }) : null,
        el('h3', { text: 'Row' }),
        entries(row, 'key'),
        Object.keys(metadata).length ? el('h3', { text: 'Columns' }) : null,
        Object.keys(metadata).length ? entries(metadata, 'metadata') : null,
        el('h3', { text: 'Table' }),
        entries({ table: table || '–', version: version ?? '–', passage: hit.id ?? '–' }, 'origin')));
    this.#node.querySelector('.panel-body').scrollTop = 0;
  }
}
