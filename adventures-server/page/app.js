// The page: connects to the service, and shows what the address names: a conversation, or the search.

import { info, ready } from './api.js';
import { Chat } from './chat.js';
import { byId, el, icon, tell } from './dom.js';
import { History } from './history.js';
import { kept, problemNote } from './problem.js';
import { Search } from './search.js';
import { Settings, withKey } from './settings.js';
import { SourcePanel } from './sources.js';
import { theme } from './store.js';

/** How often a page that is looked at again asks what is served. */
const FRESH = 60_000;

const narrow = matchMedia('(max-width: 859px)');

const app = {
  info: null,
  panel: new SourcePanel(),

  /** Another conversation is shown, and the address says so. */
  opened(id) {
    history.replaceState(null, '', id ? `#c/${id}` : '#new');
    if (!id) chat.open(null);
    way();
    list.draw(chat.id);
  },

  listed: () => list.draw(chat.id),
  reconnect: () => connect(),
};

const chat = new Chat(app);
const search = new Search(app);
const dialog = new Settings();
const list = new History({
  removed: (id) => chat.remove(id),
  renamed: (id, title) => chat.rename(id, title),
});

const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

let connecting = false;

async function connect() {
  if (connecting) return;
  connecting = true;
  const began = Date.now();
  let tries = 0;
  for (;;) {
    try {
      await ready();
      app.info = await withKey(info);
      break;
    } catch (problem) {
      tries += 1;
      if (problem.kind === 'loading') {
        loading(Math.round((Date.now() - began) / 1000));
        await wait(problem.retryAfter ?? 1);
      } else if (problem.kind === 'offline') {
        const seconds = Math.min(2 ** tries, 30);
        const now = new Promise((resolve) => state(problemNote(kept(problem), resolve)));
        await Promise.race([wait(seconds), now]);
      } else {
        await new Promise((resolve) => state(problemNote(kept(problem), resolve)));
      }
    }
  }
  connecting = false;
  state(null);
  served();
}

function state(node) {
  byId('connection').replaceChildren(...(node ? [node] : []));
  document.body.classList.toggle('unconnected', Boolean(node));
}

function loading(seconds) {
  const text = `Models and library are being loaded${seconds >= 2 ? ` · ${seconds} s` : ''}`;
  const shown = byId('connection').querySelector('.loading p');
  if (shown) {
    shown.textContent = text;
    return;
  }
  tell('Models and library are being loaded');
  state(el('div', { class: 'note loading' }, el('span', { class: 'spinner', 'aria-hidden': 'true' }), el('p', { text })));
}

/** What is served is known. */
function served() {
  const { page, library, generator } = app.info;
  byId('brand').textContent = page.title;
  byId('to-search').hidden = !library;
  byId('to-chat').hidden = !generator;
  byId('question').placeholder = generator ? 'Ask a question' : 'This service has no model that writes; use Search';
  dialog.apply(app.info);
  if (!generator && library) location.hash = '#search';
  draw();
}

function route() {
  app.panel.close(false);
  if (narrow.matches) sidebar(false);
  draw();
}

function draw() {
  const { hash } = location;
  const searches = hash === '#search';
  byId('chat-view').hidden = searches;
  byId('search-view').hidden = !searches;
  byId('to-chat').setAttribute('aria-current', searches ? 'false' : 'page');
  byId('to-search').setAttribute('aria-current', searches ? 'page' : 'false');
  const id = /^#c\/([\w-]+)$/.exec(hash)?.[1] ?? null;
  if (!searches && id !== chat.id && !chat.open(id) && id) history.replaceState(null, '', '#new');
  way();
  chat.update();
  search.update();
  list.draw(searches ? null : chat.id);
  const name = app.info?.page.title ?? 'adventures';
  document.title = searches ? `Search · ${name}` : name;
}

/** From the search the way leads back to the conversation that was open. */
function way() {
  byId('to-chat').setAttribute('href', chat.id ? `#c/${chat.id}` : '#new');
}

function view() {
  return byId('search-view').hidden ? chat : search;
}

function sidebar(open, focus = false) {
  const covers = narrow.matches;
  document.body.classList.toggle('with-sidebar', open && covers);
  byId('sidebar').inert = covers && !open;
  byId('main').inert = covers && open;
  byId('menu').setAttribute('aria-expanded', String(covers && open));
  if (covers && focus) (open ? byId('close-sidebar') : byId('menu')).focus();
}

function paint() {
  const chosen = theme.get();
  if (chosen === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  const [symbol, label] = { system: ['auto', 'System colours'], light: ['sun', 'Light'], dark: ['moon', 'Dark'] }[chosen];
  byId('theme').replaceChildren(icon(symbol), el('span', { text: label }));
  byId('theme').setAttribute('aria-label', `Colours: ${label}. Change`);
}

for (const place of document.querySelectorAll('[data-icon]')) place.prepend(icon(place.dataset.icon));

byId('theme').addEventListener('click', () => {
  theme.set({ system: 'light', light: 'dark', dark: 'system' }[theme.get()]);
  paint();
});
byId('menu').addEventListener('click', () => sidebar(true, true));
byId('close-sidebar').addEventListener('click', () => sidebar(false, true));
byId('veil').addEventListener('click', () => {
  sidebar(false, true);
  app.panel.close();
});
byId('new-chat').addEventListener('click', () => {
  history.pushState(null, '', '#new');
  route();
  chat.focus();
});
byId('skip').addEventListener('click', (event) => {
  event.preventDefault();
  view().focus();
});
document.addEventListener('panel-closed', () => sidebar(document.body.classList.contains('with-sidebar')));
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || event.defaultPrevented || document.querySelector('dialog[open]')) return;
  if (app.panel.open) app.panel.close();
  else if (document.body.classList.contains('with-sidebar')) sidebar(false, true);
  else if (!byId('chat-view').hidden) chat.stop();
});
narrow.addEventListener('change', () => sidebar(false));
addEventListener('hashchange', () => {
  route();
  if (!narrow.matches || location.hash === '#search') view().focus();
});

let fresh = Date.now();
document.addEventListener('visibilitychange', async () => {
  if (document.hidden || !app.info || Date.now() - fresh < FRESH) return;
  fresh = Date.now();
  try {
    app.info = await info();
    served();
  } catch {
    // The next question will tell.
  }
});

paint();
sidebar(false);
route();
view().focus();
connect();
