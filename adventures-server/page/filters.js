// Conditions on the columns of the library, as rows of a form.

import { el, iconButton } from './dom.js';

const WORDS = [['eq', 'is'], ['ne', 'is not'], ['in', 'is one of']];
const ORDERED = [['eq', '='], ['ne', '≠'], ['lt', '<'], ['lte', '≤'], ['gt', '>'], ['gte', '≥']];

/** How values of an Arrow type are written and compared; null for one that no form can hold. */
function kindOf(type) {
  if (/^(Large)?Utf8/.test(type)) return { input: 'text', operators: WORDS, read: (text) => text };
  if (/^(U?Int|Float|Decimal)/.test(type)) return { input: 'number', step: 'any', operators: ORDERED, read: number };
  if (type === 'Boolean') return { choices: ['true', 'false'], operators: [['eq', 'is']], read: (text) => text === 'true' };
  if (/^Date/.test(type)) return { input: 'date', operators: ORDERED, read: (text) => text };
  if (/^Timestamp/.test(type)) {
    const zoned = /,\s*(?!None)/.test(type);
    const read = (text) => (zoned ? new Date(text).toISOString() : text);
    return { input: 'datetime-local', step: '1', operators: ORDERED, read };
  }
  if (/^(Large)?List/.test(type)) {
    const item = /Int|Float|Decimal/.test(type) ? number : (text) => text;
    return { input: 'text', operators: [['contains', 'contains']], read: item };
  }
  return null;
}

function number(text) {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) throw new Error(`“${text}” is not a number`);
  if (Number.isInteger(value) && !Number.isSafeInteger(value)) throw new Error(`${text} has too many digits`);
  return value;
}

function choice(label, options) {
  return el('select', { 'aria-label': label }, ...options.map(([value, text]) => el('option', { value, text })));
}

export class Filters {
  #root;
  #changed;
  #columns = [];
  #rows = [];

  constructor(root, changed) {
    this.#root = root;
    this.#changed = changed;
  }

  /** What may be filtered: column → Arrow type. */
  apply(columns) {
    this.#columns = Object.entries(columns).map(([name, type]) => ({ name, kind: kindOf(String(type)) })).filter(({ kind }) => kind);
    return this.#columns.length > 0;
  }

  add() {
    const column = choice('Column', this.#columns.map(({ name }) => [name, name]));
    const used = new Set(this.#rows.map((row) => row.column.value));
    column.value = (this.#columns.find(({ name }) => !used.has(name)) ?? this.#columns[0]).name;
    const row = { column, operator: null, value: null };
    const node = el('div', { class: 'filter', role: 'group', 'aria-label': 'Filter' });
    const draw = () => {
      const { kind } = this.#columns.find(({ name }) => name === column.value);
      row.kind = kind;
      row.operator = choice('Condition', kind.operators);
      row.value = kind.choices
        ? choice('Value', kind.choices.map((value) => [value, value]))
        : el('input', { type: kind.input, 'aria-label': 'Value', step: kind.step, dir: 'auto' });
      const hint = () => {
        if (kind.input === 'text') row.value.placeholder = row.operator.value === 'in' ? 'one, two, …' : 'value';
      };
      row.operator.addEventListener('change', hint);
      hint();
      node.replaceChildren(column, row.operator, row.value, iconButton('close', 'Remove this filter', () => {
        this.#rows.splice(this.#rows.indexOf(row), 1);
        node.remove();
        this.#changed();
      }));
    };
    column.addEventListener('change', () => {
      draw();
      row.value.focus();
    });
    draw();
    this.#rows.push(row);
    this.#root.append(node);
    column.focus();
  }

  /** The conditions as the service reads them; throws an error for people where one cannot be. */
  where() {
    const found = {};
    for (const { column, operator, value, kind } of this.#rows) {
      if (value.value === '') continue;
      const values = operator.value === 'in' ? value.value.split(',').map((part) => part.trim()).filter(Boolean) : kind.read(value.value);
      const conditions = (found[column.value] ??= Object.create(null));
      if (operator.value in conditions) throw new Error(`The column ${column.value} has the same condition twice`);
      conditions[operator.value] = values;
    }
    return found;
  }
}
