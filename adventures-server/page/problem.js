// What the page says when something goes wrong.

import { button, el, tell } from './dom.js';

const TITLES = {
  key: 'A key is needed',
  busy: 'The service is busy',
  loading: 'Models and library are being loaded',
  offline: 'The service cannot be reached',
  cut: 'The connection was lost',
  failed: 'That did not work',
};

const HINTS = {
  key: 'Your question is kept.',
  loading: 'This takes a few seconds after a start.',
  offline: 'Is it running, and are you connected? Your question is kept.',
  cut: 'What had arrived is kept.',
};

/** What is kept of a problem beside an answer. */
export function kept(problem) {
  const until = problem.retryAfter ? Date.now() + problem.retryAfter * 1000 : null;
  return { kind: problem.kind ?? 'failed', message: String(problem.message), until };
}

/** A note with a button that tries again: at once, or when the time is over that the service asked for. */
export function problemNote({ kind, message, until }, retry) {
  const known = Object.hasOwn(TITLES, kind) ? kind : 'failed';
  const again = button(known === 'key' ? 'Enter a key' : 'Try again', retry, { class: 'plain' });
  const said = `${message.charAt(0).toUpperCase()}${message.slice(1)}`;
  const hint = HINTS[known] ?? (known === 'busy' ? `${said}. Your question is kept.` : said);
  const note = el('div', { class: `note problem ${known}`, role: 'group', 'aria-label': TITLES[known] },
    el('div', {}, el('strong', { text: TITLES[known] }), el('p', { text: hint, dir: 'auto' })), again);
  if (until && until > Date.now()) countDown(again, until);
  return note;
}

function countDown(again, until) {
  const step = () => {
    const seconds = Math.ceil((until - Date.now()) / 1000);
    const waits = seconds > 0;
    again.disabled = waits;
    again.textContent = waits ? `Try again in ${seconds} s` : 'Try again';
    if (waits) return;
    clearInterval(timer);
    if (again.isConnected) tell('You can try again now');
  };
  const timer = setInterval(step, 250);
  step();
}
