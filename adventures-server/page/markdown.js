// A safe subset of Markdown to DOM nodes, as its text comes in.
//
// Text becomes text nodes and nothing else does: what is no known syntax, HTML among it, is shown as it is written.
// Nothing that is rendered loads anything. Images are shown as links, and links lead to http and https alone.

/** How deep lists, quotes and emphasis are nested; what is deeper is shown as written. */
const DEPTH = 6;
/** The longest label of a link. */
const LABEL = 400;

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|\t|$)/;
const DELIMITERS = /^ *\|?(?: *:?-+:? *\|)* *:?-+:? *\|? *$/;
const ROW = /^ {0,3}\|/;

const SPECIAL = /\\|`+|\*+|_+|!?\[|<|https?:\/\/|\n/gi;
const CITATION = /\[(\d{1,3})\](?!\()/y;
const TARGET = /\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const ANGLE = /<(https?:\/\/[^\s<>]+)>/iy;
const BARE = /https?:\/\/[^\s<>"'`*|\\]+/iy;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;

/** Renders a text that comes in pieces, cut anywhere, into an element. */
export class Markdown {
  #root;
  #cite;
  /** From the first line of the last block on: all before it is final, and never looked at again. */
  #text = '';
  /** How much of that are whole lines. */
  #whole = 0;
  #nodes = [];

  /** `cite` returns the node that stands for the citation of a number, or null where there is no such source. */
  constructor(root, cite = () => null) {
    this.#root = root;
    this.#cite = cite;
  }

  push(text) {
    this.#text += text;
    const whole = this.#text.lastIndexOf('\n') + 1;
    if (whole > this.#whole) this.#settle(whole);
    this.#draw(true);
  }

  /** What is unfinished now stays so. */
  end() {
    this.#draw(false);
  }

  /** Every block that a whole line follows which is not part of it is final. */
  #settle(whole) {
    const lines = split(this.#text.slice(0, whole - 1));
    const starts = [...blocks(lines, 0)].map((block) => block.start);
    const last = starts.at(-1) ?? 0;
    if (starts.length > 1) {
      const length = this.#text.split('\n', last).reduce((sum, line) => sum + line.length + 1, 0);
      this.#replace(render(lines.slice(0, last), { cite: this.#cite, open: false }));
      this.#nodes = [];
      this.#text = this.#text.slice(length);
      this.#whole = whole - length;
    } else {
      this.#whole = whole;
    }
  }

  #draw(open) {
    this.#replace(render(split(this.#text), { cite: this.#cite, open }));
  }

  #replace(nodes) {
    for (const node of this.#nodes) node.remove();
    this.#root.append(...nodes);
    this.#nodes = nodes;
  }
}

function split(text) {
  return text.split('\n').map((line) => line.replace(/\r$/, ''));
}

const blank = (line) => line.trim() === '';
const indent = (line) => line.length - line.trimStart().length;

/** Whether a line begins a block even where a paragraph is running. */
function begins(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

/**
 * Cuts lines into blocks. Where one ends is known from its own lines and the one after it, so a block that is followed by
 * another does not change whatever comes.
 */
function* blocks(lines, depth) {
  let i = 0;
  while (i < lines.length) {
    const start = i;
    const line = lines[i];
    const fence = FENCE.exec(line);
    if (blank(line)) {
      i += 1;
    } else if (depth >= DEPTH) {
      i = lines.length;
      yield { kind: 'paragraph', start, lines: lines.slice(start) };
    } else if (fence) {
      const [, mark] = fence;
      const ends = (other) => {
        const text = other.trim();
        return text.length >= mark.length && text === mark[0].repeat(text.length) && indent(other) < 4;
      };
      i += 1;
      while (i < lines.length && !ends(lines[i])) i += 1;
      const inside = lines.slice(start + 1, i);
      i += 1;
      yield { kind: 'code', start, lines: inside };
    } else if (HEADING.test(line)) {
      i += 1;
      yield { kind: 'heading', start, lines: [line] };
    } else if (RULE.test(line)) {
      i += 1;
      yield { kind: 'rule', start, lines: [] };
    } else if (QUOTE.test(line)) {
      while (i < lines.length && QUOTE.test(lines[i])) i += 1;
      yield { kind: 'quote', start, lines: lines.slice(start, i).map((quoted) => quoted.replace(QUOTE, '')) };
    } else if (ITEM.test(line)) {
      i = listEnd(lines, start);
      yield { kind: 'list', start, lines: lines.slice(start, i) };
    } else if (isTable(line, lines[i + 1])) {
      i += 2;
      while (i < lines.length && !blank(lines[i]) && lines[i].includes('|')) i += 1;
      yield { kind: 'table', start, lines: lines.slice(start, i) };
    } else {
      i += 1;
      while (i < lines.length && !blank(lines[i]) && !begins(lines[i]) && !(ROW.test(lines[i]) && !ROW.test(lines[i - 1]))) {
        i += 1;
      }
      yield { kind: 'paragraph', start, lines: lines.slice(start, i) };
    }
  }
}

const family = (line) => (/\d/.test(ITEM.exec(line)[2]) ? 'number' : ITEM.exec(line)[2]);

function listEnd(lines, start) {
  const offset = indent(lines[start]);
  const marks = family(lines[start]);
  let i = start + 1;
  for (; i < lines.length; i += 1) {
    const line = lines[i];
    if (blank(line)) continue;
    if (indent(line) >= offset + 2) continue;
    if (RULE.test(line)) break;
    if (ITEM.test(line)) {
      if (family(line) !== marks) break;
    } else if (blank(lines[i - 1]) || begins(line)) {
      break;
    }
  }
  return i;
}

function isTable(head, delimiters) {
  if (delimiters === undefined || !head.includes('|') || !delimiters.includes('-')) return false;
  return DELIMITERS.test(delimiters) && cells(head).length === cells(delimiters).length;
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, '').replace(/(?<!\\)\|$/, '');
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'));
}

function make(tag, children = []) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}

function render(lines, context, depth = 0) {
  return [...blocks(lines, depth)].map((block) => BLOCKS[block.kind](block.lines, context, depth));
}

const BLOCKS = {
  paragraph: (lines, context) => make('p', inline(lines.map((line) => line.trimStart()).join('\n'), context)),
  code: (lines) => make('pre', [make('code', [lines.join('\n')])]),
  rule: () => make('hr'),
  quote: (lines, context, depth) => make('blockquote', render(lines, context, depth + 1)),

  heading([line], context) {
    const level = HEADING.exec(line)[1].length;
    const text = line.replace(HEADING, '').trim().replace(/(^|[ \t])#+$/, '');
    // The page has the levels above.
    return make(`h${Math.min(level + 2, 6)}`, inline(text, context));
  },

  list(lines, context, depth) {
    const offset = indent(lines[0]);
    const numbered = family(lines[0]) === 'number';
    const items = [];
    for (const line of lines) {
      const item = ITEM.exec(line);
      if (item && indent(line) < offset + 2) {
        items.push([line.slice(item[0].length)]);
      } else {
        items.at(-1).push(line.slice(Math.min(indent(line), offset + 2)));
      }
    }
    const list = make(numbered ? 'ol' : 'ul', items.map((item) => make('li', itemNodes(item, context, depth + 1))));
    const first = numbered ? Number.parseInt(lines[0], 10) : 1;
    if (first !== 1) list.start = first;
    return list;
  },

  table(lines, context) {
    const [head, delimiters, ...rows] = lines.map(cells);
    const sides = delimiters.map((cell) => (cell.endsWith(':') ? (cell.startsWith(':') ? 'center' : 'right') : ''));
    const row = (tag) => (values) => make('tr', sides.map((side, i) => {
      const cell = make(tag, inline(values[i] ?? '', context));
      if (side) cell.className = side;
      return cell;
    }));
    const table = make('table', [make('thead', [row('th')(head)]), make('tbody', rows.map(row('td')))]);
    const frame = make('div', [table]);
    frame.className = 'table';
    return frame;
  },
};

/** The text of an item stands in it as it is; what follows are blocks. */
function itemNodes(lines, context, depth) {
  const [first, ...rest] = [...blocks(lines, depth)];
  if (first?.kind !== 'paragraph') return render(lines, context, depth);
  const text = inline(first.lines.map((line) => line.trimStart()).join('\n'), context);
  return [...text, ...rest.map((block) => BLOCKS[block.kind](block.lines, context, depth))];
}

/** Returns the nodes of a text without blocks. */
function inline(text, context, depth = 0) {
  const out = new Pieces();
  if (depth >= DEPTH) {
    out.text(text);
    return out.nodes();
  }
  const scan = { text, context, depth, out, missing: new Set() };
  let at = 0;
  for (;;) {
    SPECIAL.lastIndex = at;
    const found = SPECIAL.exec(text);
    if (!found) break;
    out.text(text.slice(at, found.index));
    const [mark] = found;
    const after = (SYNTAX[mark[0]] ?? SYNTAX.h)(scan, found.index, mark);
    if (after === null) out.text(mark);
    at = after ?? found.index + mark.length;
  }
  out.text(text.slice(at));
  return out.nodes();
}

/** What an inline text consists of; neighbouring texts are one node. */
class Pieces {
  #nodes = [];
  #text = '';

  text(text) {
    this.#text += text;
  }

  node(node) {
    if (this.#text) this.#nodes.push(document.createTextNode(this.#text));
    this.#text = '';
    this.#nodes.push(node);
  }

  line() {
    this.#text = this.#text.replace(/[ \t]+$/, '');
    this.node(document.createElement('br'));
  }

  nodes() {
    if (this.#text) this.#nodes.push(document.createTextNode(this.#text));
    this.#text = '';
    return this.#nodes;
  }
}

// Each takes what its mark begins, and returns where the rest begins; null where it begins nothing.
const SYNTAX = {
  '\n': ({ out }, at) => {
    out.line();
    return at + 1;
  },

  '\\': ({ text, out }, at) => {
    const next = text[at + 1];
    if (next === '\n') {
      out.line();
    } else if (next !== undefined && PUNCTUATION.test(next)) {
      out.text(next);
    } else {
      return null;
    }
    return at + 2;
  },

  '`': ({ text, context, out, missing }, at, mark) => {
    const start = at + mark.length;
    let end = missing.has(mark) ? -1 : text.indexOf(mark, start);
    while (end >= 0 && (text[end - 1] === '`' || text[end + mark.length] === '`')) {
      let next = end + 1;
      while (text[next] === '`') next += 1;
      end = text.indexOf(mark, next);
    }
    if (end < 0) missing.add(mark);
    if (end < 0 && !(context.open && mark.length === 1 && start < text.length)) return null;
    const code = text.slice(start, end < 0 ? text.length : end).replaceAll('\n', ' ');
    const padded = code.length > 2 && code.startsWith(' ') && code.endsWith(' ');
    out.node(make('code', [padded ? code.slice(1, -1) : code]));
    return end < 0 ? text.length : end + mark.length;
  },

  '*': emphasis,
  _: emphasis,

  '[': bracket,
  '!': bracket,

  '<': ({ text, context, out }, at) => {
    ANGLE.lastIndex = at;
    const found = ANGLE.exec(text);
    const url = found && !context.linked && web(found[1]);
    if (!url) return null;
    out.node(link(url, [found[1]]));
    return at + found[0].length;
  },

  h: ({ text, context, out }, at) => {
    if (context.linked || (at > 0 && WORD.test(text[at - 1]))) return null;
    BARE.lastIndex = at;
    const written = BARE.exec(text)?.[0].replace(/[.,:;!?]+$/, '') ?? '';
    const bare = written.endsWith(')') && !written.includes('(') ? written.replace(/[).,:;!?]+$/, '') : written;
    const shown = bare.endsWith(']') && !bare.includes('[') ? bare.replace(/[\].,:;!?]+$/, '') : bare;
    const url = web(shown);
    if (!url) return null;
    out.node(link(url, [shown]));
    return at + shown.length;
  },
};

function emphasis(scan, at, mark) {
  const { text, context, depth, out } = scan;
  const [sign] = mark;
  const inWord = sign === '_' && at > 0 && WORD.test(text[at - 1]);
  const next = text[at + mark.length];
  if (inWord || next === undefined || /\s/.test(next)) return null;
  for (const size of mark.length >= 2 ? [2, 1] : [1]) {
    const start = at + mark.length;
    // Of three signs one is left for the emphasis inside.
    const inner = at + size;
    let end = closing(scan, start, sign, size);
    const open = end < 0 && context.open && size === 2;
    if (open) end = text.length;
    if (end > start) {
      out.node(make(size === 2 ? 'strong' : 'em', inline(text.slice(inner, end), context, depth + 1)));
      return open ? end : end + size;
    }
  }
  return null;
}

/** Where the emphasis ends; -1 where it does not. */
function closing({ text, missing }, from, sign, size) {
  const name = sign + size;
  if (missing.has(name)) return -1;
  for (let at = text.indexOf(sign, from); at >= 0; ) {
    let end = at;
    while (text[end] === sign) end += 1;
    const run = end - at;
    const fits = size === 2 ? run >= 2 : run !== 2;
    const before = text[at - 1];
    const inWord = sign === '_' && end < text.length && WORD.test(text[end]);
    if (fits && !inWord && before !== '\\' && !/\s/.test(before)) return end - size;
    at = text.indexOf(sign, end);
  }
  missing.add(name);
  return -1;
}

function bracket({ text, context, depth, out }, at, mark) {
  const start = at + mark.length;
  if (mark === '[') {
    CITATION.lastIndex = at;
    const cited = CITATION.exec(text);
    const node = cited && !context.linked && context.cite(Number(cited[1]));
    if (node) {
      out.node(node);
      return at + cited[0].length;
    }
  }
  if (context.linked) return null;
  const end = labelEnd(text, start);
  if (end < 0) return null;
  TARGET.lastIndex = end + 1;
  const target = TARGET.exec(text);
  const url = target && web(target[1]);
  if (!url) return null;
  const label = text.slice(start, end).trim() || 'link';
  const inside = inline(label, { ...context, linked: true }, depth + 1);
  out.node(link(url, mark === '[' ? inside : ['image: ', ...inside]));
  return end + 1 + target[0].length;
}

function labelEnd(text, start) {
  let open = 1;
  for (let i = start; i < Math.min(text.length, start + LABEL); i += 1) {
    if (text[i] === '\\') i += 1;
    else if (text[i] === '[') open += 1;
    else if (text[i] === ']') open -= 1;
    if (open === 0) return i;
  }
  return -1;
}

/** Returns the address of a page on the web that a text is; null where it is another or pretends to be. */
function web(text) {
  if (!/^https?:\/\//i.test(text)) return null;
  let url;
  try {
    url = new URL(text);
  } catch {
    return null;
  }
  const named = url.username || url.password; // https://bank.example@elsewhere.example
  return (url.protocol === 'https:' || url.protocol === 'http:') && !named ? url : null;
}

function link(url, label) {
  const node = make('a', [make('bdi', label)]);
  node.href = url.href;
  node.target = '_blank';
  node.rel = 'noopener noreferrer nofollow';
  node.referrerPolicy = 'no-referrer';
  node.title = url.href;
  const shown = node.textContent.toLowerCase();
  if (shown !== url.href && !shown.startsWith(`${url.origin}/`) && shown !== url.origin) {
    const host = make('bdi', [url.host]);
    host.className = 'host';
    node.append(' ', host);
  }
  return node;
}
