// Elements, icons, and what is said to people who do not see the page. Text enters as text nodes alone.

const SVG = 'http://www.w3.org/2000/svg';

const ICONS = {
  plus: ['M12 5v14', 'M5 12h14'],
  menu: ['M4 7h16', 'M4 12h16', 'M4 17h16'],
  close: ['M6 6l12 12', 'M18 6 6 18'],
  send: ['M12 19V5', 'M6 11l6-6 6 6'],
  stop: ['M7.5 7.5h9v9h-9z'],
  copy: ['M9 9h10v11H9z', 'M5 15V4h10'],
  check: ['M5 12.5l4.5 4.5L19 7.5'],
  again: ['M20 11.5a8 8 0 1 0-2.3 6.2', 'M20 5.5v6h-6'],
  edit: ['M4 20h4L19 9l-4-4L4 16z'],
  bin: ['M5 7h14', 'M9 7V4h6v3', 'M7 7l1 13h8l1-13'],
  gear: ['M4 7h9', 'M17 7h3', 'M15 5v4', 'M4 17h3', 'M11 17h9', 'M9 15v4', 'M4 12h16'],
  chat: ['M5 5h14v11h-8l-4 4v-4H5z'],
  search: ['M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14', 'M16 16l4.5 4.5'],
  sun: [
    'M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8', 'M12 2.5v2', 'M12 19.5v2', 'M2.5 12h2', 'M19.5 12h2',
    'M5.3 5.3l1.4 1.4', 'M17.3 17.3l1.4 1.4', 'M5.3 18.7l1.4-1.4', 'M17.3 6.7l1.4-1.4',
  ],
  moon: ['M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10z'],
  auto: ['M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16', 'M12 4v16', 'M15 6v12', 'M18 9v6'],
  down: ['M12 5v14', 'M6 13l6 6 6-6'],
  back: ['M14.5 6l-6 6 6 6'],
  next: ['M9.5 6l6 6-6 6'],
};

/** Returns an element. Of `props`, `class`, `text` and `on` (event to listener) are special; the rest are attributes. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === 'class') node.className = value;
    else if (name === 'text') node.textContent = value;
    else if (name === 'on') for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('aria-hidden', 'true');
  svg.classList.add('icon');
  for (const line of ICONS[name]) {
    const path = document.createElementNS(SVG, 'path');
    path.setAttribute('d', line);
    svg.append(path);
  }
  return svg;
}

/** A button that shows an icon alone; `label` is its name and its tooltip. */
export function iconButton(name, label, click, props = {}) {
  return el('button', { type: 'button', class: 'quiet', 'aria-label': label, title: label, on: { click }, ...props }, icon(name));
}

export function button(label, click, props = {}) {
  return el('button', { type: 'button', text: label, on: { click }, ...props });
}

export const byId = (id) => document.getElementById(id);

/** Says how something goes: replaced by what comes next. */
export function tell(text) {
  byId('status').textContent = text;
}

/** Reads a finished answer out. */
export function announce(text) {
  const log = byId('announcer');
  log.append(el('p', { text, dir: 'auto' }));
  while (log.children.length > 3) log.firstChild.remove();
}

let toastTimer;

/** Shows a line for a while, with something to be done about it. */
export function toast(text, action, run) {
  const place = byId('toast');
  const close = () => {
    clearTimeout(toastTimer);
    place.replaceChildren();
    place.hidden = true;
  };
  clearTimeout(toastTimer);
  place.replaceChildren(el('span', { text }));
  if (action) {
    place.append(button(action, () => {
      close();
      run();
    }, { class: 'link' }));
  }
  place.append(iconButton('close', 'Dismiss', close));
  place.hidden = false;
  toastTimer = setTimeout(close, 8000);
}

/** Puts a text on the clipboard; browsers hide the newer way from pages without TLS. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el('textarea', { class: 'visually-hidden', 'aria-hidden': 'true', tabindex: '-1' });
    area.value = text;
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    focused?.focus();
    return done;
  }
}

/** A button that copies what `text` returns, and says that it did. */
export function copyButton(label, text) {
  const node = iconButton('copy', label, async () => {
    const done = await copy(text());
    tell(done ? 'Copied' : 'The browser does not let the page copy');
    if (!done) return;
    node.replaceChildren(icon('check'));
    setTimeout(() => node.replaceChildren(icon('copy')), 1500);
  });
  return node;
}

/** Asks before something cannot be undone. */
export function confirm(title, text, action) {
  const dialog = byId('confirm');
  byId('confirm-title').textContent = title;
  byId('confirm-text').textContent = text;
  const yes = byId('confirm-yes');
  yes.textContent = action;
  return new Promise((resolve) => {
    const decide = (choice) => {
      resolve(choice);
      dialog.close();
    };
    yes.onclick = () => decide(true);
    byId('confirm-no').onclick = () => decide(false);
    // The event of an earlier question may come late, when this one is open already.
    dialog.onclose = () => dialog.open || resolve(false);
    dialog.showModal();
  });
}
