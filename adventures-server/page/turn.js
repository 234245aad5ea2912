// One question and its answer, as they are seen.

import { button, copyButton, el, icon, iconButton } from './dom.js';
import { Markdown } from './markdown.js';
import { problemNote } from './problem.js';
import { figure, sourceName } from './sources.js';

/** After this long of waiting for the first word the seconds are shown. */
const PATIENCE = 4_000;

export class TurnView {
  #turn;
  #hooks;
  #markdown;
  #waiting = '';
  #frame = null;
  #clock = null;
  #began = 0;
  #question = el('div', { class: 'question' });
  #progress = el('p', { class: 'progress' });
  #prose = el('div', { class: 'prose', dir: 'auto' });
  #below = el('div', { class: 'below' });

  /** `hooks` are what its buttons do: source, edit, again. */
  constructor(turn, number, hooks) {
    this.#turn = turn;
    this.#hooks = hooks;
    this.node = el('article', { class: 'turn', 'aria-label': `Question ${number}` },
      this.#question,
      el('div', { class: 'answer' },
        el('h3', { class: 'visually-hidden', text: 'Answer' }), this.#progress, this.#prose, this.#below));
    this.#asked();
    this.restart();
  }

  get text() {
    return this.#prose.textContent;
  }

  /** Shows the answer from its beginning, whatever there is of it. */
  restart() {
    this.#prose.replaceChildren();
    this.#markdown = new Markdown(this.#prose, (number) => this.#citation(number));
    this.#waiting = '';
    if (this.#turn.answer) this.#markdown.push(this.#turn.answer);
    if (this.#turn.state !== 'running') this.#markdown.end();
    this.#began = Date.now();
    this.update();
  }

  /** More of the answer; drawn with the next picture. */
  add(text) {
    this.#waiting += text;
    if (this.#frame !== null) return;
    // A page that nobody sees draws no pictures.
    const later = document.hidden ? (draw) => setTimeout(draw, 250) : requestAnimationFrame;
    this.#frame = later(() => this.#flush());
  }

  #flush() {
    this.#frame = null;
    if (!this.#waiting) return;
    this.#markdown.push(this.#waiting);
    this.#waiting = '';
    this.#progressed();
    this.#hooks.grown();
  }

  /** The answer has come to its end, whichever. */
  settle() {
    this.#flush();
    this.#markdown.end();
    this.update();
  }

  update() {
    const running = this.#turn.state === 'running';
    this.node.classList.toggle('running', running);
    this.node.setAttribute('aria-busy', String(running));
    this.#progressed();
    clearInterval(this.#clock);
    if (running) this.#clock = setInterval(() => this.#tick(), 1000);
    this.#below.replaceChildren(...(running ? [] : this.#notes()), ...this.#sources(), ...(running ? [] : [this.#actions()]));
  }

  #tick() {
    if (this.node.isConnected) this.#progressed();
    else clearInterval(this.#clock);
  }

  #progressed() {
    const { state, answer, sources } = this.#turn;
    const waits = state === 'running' && !answer;
    this.#progress.hidden = !waits;
    if (!waits) return;
    const seconds = Math.round((Date.now() - this.#began) / 1000);
    const passages = sources.length === 1 ? 'a passage' : `${sources.length} passages`;
    const does = sources.length ? `Reading ${passages}` : 'Looking for an answer';
    const long = seconds * 1000 >= PATIENCE ? ` · ${seconds} s` : '';
    this.#progress.replaceChildren(
      el('span', { class: 'dots', 'aria-hidden': 'true' }, el('i'), el('i'), el('i')), `${does}…${long}`);
  }

  #asked() {
    this.#question.replaceChildren(
      el('h3', { class: 'visually-hidden', text: 'You asked' }),
      el('p', { class: 'said', text: this.#turn.question, dir: 'auto' }),
      el('div', { class: 'actions' },
        iconButton('edit', 'Edit this question', () => this.edit()),
        copyButton('Copy the question', () => this.#turn.question)));
  }

  /** Lets the question be written anew. */
  edit() {
    const input = el('textarea', { rows: '3', 'aria-label': 'Edit the question', dir: 'auto' });
    input.value = this.#turn.question;
    const later = this.#hooks.later(this.#turn);
    const cancel = () => {
      this.#asked();
      this.#question.querySelector('button').focus();
    };
    const save = () => {
      const text = input.value.trim();
      if (text) this.#hooks.edit(this.#turn, text);
    };
    input.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        save();
      } else if (event.key === 'Escape') {
        event.preventDefault();
        event.stopPropagation();
        cancel();
      }
    });
    const questions = later === 1 ? 'the question' : `the ${later} questions`;
    const hint = later ? `This replaces ${questions} after it, too.` : '';
    this.#question.replaceChildren(el('form', { class: 'editing', on: { submit: (event) => { event.preventDefault(); save(); } } },
      input,
      el('div', { class: 'row' }, el('span', { class: 'hint', text: hint }),
        button('Cancel', cancel, { class: 'plain' }), el('button', { type: 'submit', class: 'primary', text: 'Ask again' }))));
    input.focus();
    input.setSelectionRange(input.value.length, input.value.length);
  }

  #citation(number) {
    const hit = this.#turn.sources[number - 1];
    if (!hit) return null;
    const node = button(String(number), () => this.#hooks.source(this.#turn, number, node), { class: 'cite' });
    node.setAttribute('aria-label', `Source ${number}: ${sourceName(hit)}`);
    node.title = sourceName(hit);
    return node;
  }

  #notes() {
    const { state, problem, finish, dropped, truncated } = this.#turn;
    const notes = [];
    const say = (text) => notes.push(el('p', { class: 'note', text }));
    const again = () => this.#hooks.again(this.#turn);
    if (state === 'failed') notes.push(problemNote(problem ?? { kind: 'failed', message: '' }, again));
    if (state === 'cut') notes.push(problemNote(problem ?? { kind: 'cut', message: '' }, again));
    if (state === 'stopped') say('You stopped this answer.');
    if (state === 'done' && finish === 'length') say('The answer ends here because it has reached its longest length.');
    if (dropped) say(`${dropped === 1 ? 'One more passage was' : `${dropped} more passages were`} found; the model reads no more at once.`);
    if (truncated) say('Your question is long: passages were looked for by its beginning only.');
    return notes;
  }

  #sources() {
    const { sources, cited, state } = this.#turn;
    if (!sources.length) return [];
    const items = sources.map((hit, i) => {
      const used = state !== 'done' || cited.length === 0 || cited.includes(i + 1);
      const open = () => this.#hooks.source(this.#turn, i + 1, node);
      const node = el('button', { type: 'button', class: used ? 'source' : 'source unused', on: { click: open } },
        el('span', { class: 'number', text: String(i + 1) }),
        el('span', { class: 'name', text: sourceName(hit), dir: 'auto' }),
        el('span', { class: 'figure', text: figure(hit.similarity), title: 'Similarity' }));
      return el('li', {}, node);
    });
    return [el('section', { class: 'sources', 'aria-label': 'Sources' }, el('h4', { text: 'Sources' }), el('ol', {}, ...items))];
  }

  #actions() {
    const { answer, state } = this.#turn;
    const again = el('button', {
      type: 'button',
      class: 'quiet labelled again',
      title: 'At temperature 0 the answer stays the same',
      on: { click: () => this.#hooks.again(this.#turn) },
    }, icon('again'), 'Regenerate');
    const failed = state === 'failed' || state === 'cut';
    return el('div', { class: 'actions' },
      answer ? copyButton('Copy the answer', () => this.#turn.answer) : null, failed ? null : again);
  }
}
