// The conversation: questions go out, answers come in, and both are kept.

import { Problem, answer } from './api.js';
import { announce, byId, button, el, icon, tell, toast } from './dom.js';
import { kept } from './problem.js';
import { withKey } from './settings.js';
import { chats, newId, settings } from './store.js';
import { tableName } from './sources.js';
import { TurnView } from './turn.js';

/** How often what has come of an answer is kept. */
const KEEP = 1_000;
/** How much of earlier turns is sent: half of what the model reads, at four bytes a token. */
const BYTES_OF_CONTEXT = 2;

export class Chat {
  #app;
  #chat = null;
  #views = new Map();
  /** What is being answered: a conversation's id → how to stop it. */
  #runs = new Map();
  #thread = byId('thread');
  #scroller = byId('scroller');
  #input = byId('question');
  #follows = true;

  /** `app` has `info`, `panel`, `opened(id)` and `listed()`. */
  constructor(app) {
    this.#app = app;
    byId('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#input.addEventListener('input', () => this.#fit());
    this.#input.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.running) this.#submit();
    });
    this.#scroller.addEventListener('scroll', () => {
      const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
      this.#follows = scrollHeight - scrollTop - clientHeight < 60;
      byId('latest').hidden = this.#follows;
    }, { passive: true });
    byId('latest').addEventListener('click', () => {
      this.#bottom();
      this.#input.focus();
    });
    chats.watch((id) => this.#changed(id));
    addEventListener('pagehide', () => {
      for (const { chat } of this.#runs.values()) chats.save(chat);
    });
  }

  get id() {
    return this.#chat?.id ?? null;
  }

  get running() {
    return this.#runs.has(this.id);
  }

  /** Shows a conversation; without an id, or with an unknown one, a new one. Returns whether it is known. */
  open(id) {
    this.#chat = (id && (this.#runs.get(id)?.chat ?? chats.get(id))) || null;
    this.#draw();
    return Boolean(this.#chat);
  }

  focus() {
    this.#input.focus();
  }

  /** Draws what hangs on the service: whether it answers, and how it introduces itself. */
  update() {
    this.#hero();
    this.#button();
  }

  stop() {
    this.#runs.get(this.id)?.controller.abort();
  }

  rename(id, title) {
    const chat = this.#loaded(id);
    if (!chat) return;
    chat.title = title;
    chats.save(chat);
    this.#heading();
  }

  /** Forgets a conversation; returns what it was. */
  remove(id) {
    const chat = this.#loaded(id);
    const run = this.#runs.get(id);
    if (run) {
      run.removed = true;
      run.controller.abort();
    }
    chats.remove(id);
    if (this.id === id) this.#app.opened(null);
    return chat;
  }

  #loaded(id) {
    return this.#runs.get(id)?.chat ?? (this.id === id ? this.#chat : chats.get(id));
  }

  #changed(id) {
    this.#app.listed();
    if (this.#chat && (id === null || id === this.id) && !this.running) {
      if (!this.open(this.id)) this.#app.opened(null);
    }
  }

  #submit() {
    if (this.running) {
      this.stop();
      return;
    }
    const text = this.#input.value.trim();
    if (!text || !this.#app.info?.generator) return;
    this.#input.value = '';
    this.#fit();
    this.ask(text);
  }

  ask(question) {
    if (!this.#chat) {
      const now = Date.now();
      const line = question.replace(/\s+/g, ' ');
      const title = line.length > 60 ? `${line.slice(0, 60).replace(/\s\S*$/, '')}…` : line;
      this.#chat = { id: newId(), title, created: now, updated: now, turns: [] };
      this.#app.opened(this.id);
    }
    const turn = { question };
    this.#chat.turns.push(turn);
    this.#answer(this.#chat, turn);
  }

  /** A question in other words; what came after it goes. */
  #edit(turn, question) {
    this.#cutOff(turn);
    this.ask(question);
    this.#input.focus();
  }

  /** Another answer to the same question. */
  #again(turn) {
    const { question } = turn;
    this.#cutOff(turn);
    this.ask(question);
    this.#input.focus();
  }

  #cutOff(turn) {
    this.stop();
    this.#runs.delete(this.id);
    const { turns } = this.#chat;
    for (const gone of turns.splice(turns.indexOf(turn))) {
      this.#views.get(gone)?.node.remove();
      this.#views.delete(gone);
    }
  }

  #request(chat, turn) {
    const { temperature, max_tokens, ...retrieval } = settings.get();
    const { generator, library } = this.#app.info;
    let room = generator.context * BYTES_OF_CONTEXT;
    const messages = [{ role: 'user', content: turn.question }];
    for (const { question, answer: said } of chat.turns.slice(0, chat.turns.indexOf(turn)).reverse()) {
      if (!said) continue;
      room -= question.length + said.length;
      if (room < 0) break;
      messages.unshift({ role: 'user', content: question }, { role: 'assistant', content: said });
    }
    const body = { model: 'default', messages };
    if (temperature !== null) body.temperature = temperature;
    if (max_tokens !== null) body.max_tokens = max_tokens;
    const how = Object.fromEntries(Object.entries(retrieval).filter(([, value]) => value !== null));
    if (library && Object.keys(how).length) body.retrieval = how;
    return body;
  }

  async #answer(chat, turn) {
    const run = { chat, controller: new AbortController(), removed: false };
    Object.assign(turn, { answer: '', state: 'running', sources: [], cited: [], dropped: 0, truncated: false, finish: '', problem: null });
    this.#runs.set(chat.id, run);
    chat.updated = Date.now();
    let saved = chats.save(chat);
    if (!saved) toast('This browser has no room for more: the conversation is kept until the page is closed.');
    this.#app.listed();
    this.#append(turn);
    this.#bottom();
    this.update();
    tell('Looking for an answer');
    let last = Date.now();
    try {
      await withKey(async () => {
        for await (const part of answer(this.#request(chat, turn), run.controller.signal)) {
          const view = this.#views.get(turn);
          if (part.sources) {
            Object.assign(turn, part);
            view?.update();
          } else if (part.text) {
            turn.answer += part.text;
            view?.add(part.text);
          } else {
            turn.cited = part.citations;
            turn.finish = part.finish;
          }
          if (Date.now() - last > KEEP && !run.removed) {
            last = Date.now();
            saved = chats.save(chat);
          }
        }
      });
      turn.state = 'done';
    } catch (problem) {
      if (run.controller.signal.aborted) {
        turn.state = 'stopped';
      } else {
        turn.problem = kept(problem instanceof Problem ? problem : new Problem('failed', 'the page has a fault'));
        turn.state = turn.problem.kind === 'cut' ? 'cut' : 'failed';
        if (!(problem instanceof Problem)) console.error(problem);
      }
    }
    if (this.#runs.get(chat.id) === run) this.#runs.delete(chat.id);
    if (!run.removed && chat.turns.includes(turn)) chats.save(chat);
    this.#app.listed();
    this.#finished(chat, turn);
  }

  #finished(chat, turn) {
    const view = this.#views.get(turn);
    view?.settle();
    this.update();
    if (this.#chat !== chat || !view) return;
    this.#grown();
    const says = { done: '', stopped: 'The answer was stopped.', cut: 'The connection was lost.', failed: turn.problem?.message ?? '' };
    tell(says[turn.state]);
    if (view.text) announce(view.text);
    if (turn.problem?.kind === 'loading') this.#app.reconnect();
  }

  #append(turn) {
    const chat = this.#chat;
    const view = new TurnView(turn, chat.turns.indexOf(turn) + 1, {
      source: (of, number, opener) => this.#app.panel.show(of.sources, number, opener),
      edit: (of, question) => this.#edit(of, question),
      again: (of) => this.#again(of),
      later: (of) => chat.turns.length - 1 - chat.turns.indexOf(of),
      grown: () => this.#grown(),
    });
    this.#views.set(turn, view);
    this.#thread.append(view.node);
    this.#heading();
  }

  #draw() {
    this.#views.clear();
    this.#thread.replaceChildren();
    for (const turn of this.#chat?.turns ?? []) this.#append(turn);
    this.#heading();
    this.update();
    this.#bottom();
  }

  #heading() {
    byId('chat-title').textContent = this.#chat?.title || 'New conversation';
  }

  #hero() {
    const hero = byId('hero');
    hero.hidden = Boolean(this.#chat);
    const { page, library, generator } = this.#app.info ?? {};
    byId('hero-title').textContent = page?.title ?? '';
    const usual = library ? 'Ask a question; the answer cites the passages that it comes from.' : 'Ask a question.';
    byId('greeting').textContent = page ? page.greeting || usual : '';
    const examples = generator ? page?.examples ?? [] : [];
    const proposal = (example) => button(example, () => {
      this.ask(example);
      this.#input.focus();
    }, { class: 'example', dir: 'auto' });
    byId('examples').replaceChildren(...examples.map((example) => el('li', {}, proposal(example))));
    const from = library?.delta ? ` from ${tableName(library.delta)}, version ${library.delta_version ?? '–'}` : '';
    byId('holdings').textContent = library ? `${library.passages.toLocaleString('en')} passages${from}` : '';
  }

  #button() {
    const { running } = this;
    const send = byId('send');
    send.classList.toggle('stop', running);
    send.setAttribute('aria-label', running ? 'Stop the answer' : 'Send');
    send.title = running ? 'Stop (Esc)' : 'Send (Enter)';
    send.replaceChildren(icon(running ? 'stop' : 'send'));
    send.disabled = !running && (!this.#app.info?.generator || !this.#input.value.trim());
  }

  #fit() {
    this.#input.style.height = 'auto';
    this.#input.style.height = `${this.#input.scrollHeight}px`;
    this.#button();
  }

  #grown() {
    if (this.#follows) this.#bottom();
  }

  #bottom() {
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#follows = true;
    byId('latest').hidden = true;
  }
}
