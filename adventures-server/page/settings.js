// The dialogs: how to answer, and the key of the service.

import { byId, tell } from './dom.js';
import { key, settings } from './store.js';

const NUMBERS = ['temperature', 'max_tokens', 'k', 'min_similarity'];

export class Settings {
  #dialog = byId('settings');
  #hybrid = false;
  #field = (name) => byId(`set-${name}`);

  constructor() {
    byId('open-settings').addEventListener('click', () => this.open());
    byId('settings-done').addEventListener('click', () => this.#dialog.close());
    byId('settings-reset').addEventListener('click', () => {
      settings.set({});
      this.#fill();
      tell('The service’s own settings are used');
    });
    this.#dialog.querySelector('form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#dialog.close();
    });
    this.#dialog.addEventListener('input', () => this.#keep());
    this.#field('temperature').addEventListener('input', () => this.#warmth());
  }

  /** What the service does where nothing is set. */
  apply({ generator, library }) {
    for (const part of this.#dialog.querySelectorAll('[data-needs]')) {
      part.hidden = !(part.dataset.needs === 'library' ? library : generator);
    }
    if (generator) {
      this.#field('max_tokens').max = generator.max_tokens;
      this.#field('max_tokens').placeholder = generator.max_tokens;
    }
    if (library) {
      this.#field('k').placeholder = library.k;
      this.#field('min_similarity').placeholder = Number(library.min_similarity.toFixed(3));
      this.#hybrid = library.hybrid;
    }
    this.#fill();
  }

  open() {
    this.#fill();
    this.#dialog.showModal();
  }

  #fill() {
    const values = settings.get();
    for (const name of NUMBERS) this.#field(name).value = values[name] ?? (name === 'temperature' ? 0 : '');
    this.#field('hybrid').checked = values.hybrid ?? this.#hybrid;
    this.#warmth();
  }

  #warmth() {
    const value = Number(this.#field('temperature').value);
    const says = value === 0 ? 'always the likeliest words' : value < 0.8 ? 'some variety' : value <= 1.2 ? 'much variety' : 'wild';
    byId('temperature-value').textContent = `${value.toFixed(1)} · ${says}`;
  }

  #keep() {
    const values = {};
    for (const name of NUMBERS) {
      const field = this.#field(name);
      const number = field.value === '' ? null : field.valueAsNumber;
      values[name] = number !== null && Number.isFinite(number) && field.validity.valid ? number : null;
    }
    if (values.temperature === 0) values.temperature = null;
    const { checked } = this.#field('hybrid');
    values.hybrid = checked === this.#hybrid ? null : checked;
    settings.set(values);
  }
}

let asking = null;

/** Asks for the key, once however many requests need it; returns whether there is one now. */
export function askKey(message) {
  asking ??= new Promise((resolve) => {
    const dialog = byId('key-dialog');
    const input = byId('key');
    byId('key-message').textContent = message;
    input.value = '';
    dialog.returnValue = '';
    dialog.querySelector('form').onsubmit = (event) => {
      event.preventDefault();
      const value = input.value.trim();
      // A header holds nothing else.
      const fits = /^[\x21-\x7e]+$/.test(value);
      input.setCustomValidity(fits ? '' : 'A key consists of visible ASCII characters.');
      if (!input.reportValidity()) return;
      key.set(value);
      dialog.close('key');
    };
    input.oninput = () => input.setCustomValidity('');
    byId('key-cancel').onclick = () => dialog.close();
    dialog.addEventListener('close', () => {
      asking = null;
      resolve(dialog.returnValue === 'key');
    }, { once: true });
    if (byId('settings').open) byId('settings').close();
    dialog.showModal();
  });
  return asking;
}

/** Does `work`, with a key where the service wants one. */
export async function withKey(work) {
  for (;;) {
    try {
      return await work();
    } catch (problem) {
      if (problem.kind !== 'key') throw problem;
      const known = key.get() !== null;
      key.remove();
      const message = known ? 'The service does not know that key.' : 'This service answers to those who have its key.';
      if (!(await askKey(message))) throw problem;
    }
  }
}
