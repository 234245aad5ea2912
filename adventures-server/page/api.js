// The service: requests, what goes wrong with them, and answers as they come.

import { key } from './store.js';

/** The service sends something each second; after this long without, the connection is gone. */
const SILENCE = 30_000;

/** What went wrong. `kind` is key, busy, loading, offline, cut or failed. */
export class Problem extends Error {
  constructor(kind, message, { retryAfter = null, param = null } = {}) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
    this.param = param;
  }
}

const KINDS = { 401: 'key', 429: 'busy' };

async function problem(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Something between here and the service has answered.
  }
  const loading = response.status === 503 && error.code === 'loading';
  const kind = loading ? 'loading' : KINDS[response.status] ?? 'failed';
  const seconds = Number(response.headers.get('retry-after'));
  const retryAfter = Number.isFinite(seconds) && seconds > 0 ? Math.min(seconds, 600) : null;
  const message = typeof error.message === 'string' ? error.message : `the service answered with status ${response.status}`;
  const param = typeof error.param === 'string' ? error.param : null;
  return new Problem(kind, message, { retryAfter, param });
}

async function call(path, { body, signal, accept = 'application/json' } = {}) {
  const headers = { Accept: accept };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  const secret = key.get();
  if (secret) headers.Authorization = `Bearer ${secret}`;
  const method = body === undefined ? 'GET' : 'POST';
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal, credentials: 'omit', cache: 'no-store' });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem('offline', 'the service cannot be reached');
  }
  if (!response.ok) throw await problem(response);
  return response;
}

async function json(path, options) {
  const response = await call(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    throw new Problem('offline', 'the connection was lost');
  }
}

export const ready = () => json('ready');
export const info = () => json('info');
export const search = (body, signal) => json('v1/search', { body, signal });

/** Yields the events of a stream as {event, data}; comments only show that somebody is there. */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  let event = '';
  let data = [];
  try {
    for (;;) {
      const { done, value } = await within(reader.read());
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      // A carriage return at the end may be half of a line's end.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === '') {
          if (data.length) yield { event: event || 'message', data: data.join('\n') };
          event = '';
          data = [];
        } else if (line.startsWith('data:')) {
          data.push(line.slice(line[5] === ' ' ? 6 : 5));
        } else if (line.startsWith('event:')) {
          event = line.slice(6).trim();
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function within(work) {
  let timer;
  const silent = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Problem('cut', 'the connection was lost')), SILENCE);
  });
  try {
    return await Promise.race([work, silent]);
  } finally {
    clearTimeout(timer);
  }
}

/** Yields an answer as {sources, dropped, truncated}, then {text} again and again, then {citations, finish}. */
export async function* answer(body, signal) {
  const response = await call('v1/chat/completions', { body: { ...body, stream: true }, signal, accept: 'text/event-stream' });
  const lost = () => new Problem('cut', 'the connection was lost');
  try {
    for await (const { event, data } of events(response.body)) {
      if (data === '[DONE]') return;
      const chunk = JSON.parse(data);
      if (event === 'error') throw new Problem('failed', String(chunk.error?.message ?? 'the answer failed'));
      if (Array.isArray(chunk.sources)) {
        yield { sources: chunk.sources, dropped: chunk.dropped ?? 0, truncated: chunk.truncated ?? false };
      }
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) yield { citations: chunk.citations ?? [], finish: choice.finish_reason };
    }
  } catch (error) {
    if (signal.aborted || error instanceof Problem) throw error;
    throw lost();
  }
  throw lost();
}
