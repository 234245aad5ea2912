// The list of conversations.

import { byId, confirm, el, iconButton, tell, toast } from './dom.js';
import { chats } from './store.js';

export class History {
  #list = byId('history');
  #hooks;
  #current = null;

  /** `hooks` are: removed (a conversation), shows (the id that is open). */
  constructor(hooks) {
    this.#hooks = hooks;
    byId('clear').addEventListener('click', () => this.#clear());
  }

  draw(current = this.#current) {
    this.#current = current;
    const all = chats.list();
    this.#list.replaceChildren(...all.map((chat) => this.#item(chat)));
    byId('no-history').hidden = all.length > 0;
    byId('clear').hidden = all.length === 0;
  }

  #item(chat) {
    const open = chat.id === this.#current;
    const title = chat.title || 'Untitled';
    const link = el('a', { href: `#c/${chat.id}`, text: title, title, dir: 'auto', 'aria-current': open ? 'page' : null });
    const item = el('li', { class: open ? 'current' : '' }, link,
      iconButton('edit', `Rename ${title}`, () => this.#rename(chat, item)),
      iconButton('bin', `Delete ${title}`, () => this.#remove(chat)));
    return item;
  }

  #rename(chat, item) {
    const input = el('input', { type: 'text', 'aria-label': 'Name of the conversation', maxlength: '120', dir: 'auto' });
    input.value = chat.title;
    let over = false;
    const finish = (keep) => {
      if (over) return;
      over = true;
      const title = input.value.trim();
      if (keep && title && title !== chat.title) this.#hooks.renamed(chat.id, title);
      this.draw();
      this.#list.querySelector(`a[href="#c/${chat.id}"]`)?.focus();
    };
    input.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.isComposing) finish(true);
      if (event.key === 'Escape') {
        event.stopPropagation();
        finish(false);
      }
    });
    input.addEventListener('blur', () => finish(true));
    item.replaceChildren(input);
    input.focus();
    input.select();
  }

  #remove(chat) {
    const links = [...this.#list.querySelectorAll('a')];
    const at = links.findIndex((link) => link.hash === `#c/${chat.id}`);
    const whole = this.#hooks.removed(chat.id) ?? chat;
    this.draw();
    const next = this.#list.querySelectorAll('a')[Math.min(at, links.length - 2)];
    (next ?? byId('new-chat')).focus();
    tell('Conversation deleted');
    toast('Conversation deleted.', 'Undo', () => {
      chats.save(whole);
      this.draw();
      tell('Conversation restored');
    });
  }

  async #clear() {
    const many = chats.list().length;
    const what = many === 1 ? 'the conversation' : `all ${many} conversations`;
    const yes = await confirm('Delete all conversations?', `This deletes ${what} from this browser and cannot be undone.`, 'Delete all');
    if (!yes) return;
    for (const chat of chats.list()) this.#hooks.removed(chat.id);
    chats.clear();
    this.draw();
    byId('new-chat').focus();
    tell('All conversations deleted');
  }
}
