//! One answer, as the engine has it: a prompt that is read in pieces, then a token at a time.

use super::generation::Finish;
use super::load::Place;
use super::logprob::Logits;
use super::lookup::Lookup;
use super::stop::StopFinder;
use super::stream::Stream;
use crate::error::Result;
use crate::models::{CausalLm, FEWEST_TOGETHER, Run, Step};
use crate::sampling::Sampler;
use crate::tokenizer::{TextStream, Tokenizer};
use std::sync::Arc;

/// What the next token is chosen from.
pub(super) enum Choice {
    /// The logit of each.
    Logits(Vec<f32>),
    /// The highest, of which the model alone knows how high it is.
    Best(u32),
}

/// How many tokens of a prompt are read between two looks at whether to go on; whole fours, as [`CausalLm`] asks for.
const PIECE: usize = 128;

/// What an answer is made from.
pub(super) struct Job {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) prompt: Vec<u32>,
    /// Text that the answer begins with and the prompt ends with.
    pub(super) prefix: String,
    pub(super) sampler: Sampler,
    pub(super) stops: Vec<String>,
    pub(super) max_tokens: usize,
    /// With how many alternatives log probabilities are kept.
    pub(super) logprobs: Option<usize>,
    /// Whether a space before the first word belongs to the vocabulary and not to the answer.
    pub(super) trim_start: bool,
    /// Whether tokens are guessed from the text before.
    pub(super) prompt_lookup: bool,
}

pub(super) struct Answer {
    pub(super) stream: Arc<Stream>,
    /// When it was last part of a step.
    pub(super) stepped: u64,
    tokenizer: Arc<Tokenizer>,
    sampler: Sampler,
    max_tokens: usize,
    logprobs: Option<usize>,
    trim_start: bool,
    prefix: String,
    text: TextStream,
    stop: StopFinder,
    /// The prompt, and what was generated.
    history: Vec<u32>,
    prompt_tokens: usize,
    lookup: Option<Lookup>,
    /// `None` before the first piece of the prompt is read.
    run: Option<Box<dyn Run>>,
    /// Tokens to be read next: the last one generated, and guesses at what follows.
    next: Vec<u32>,
    /// The last to be dropped: who is counted no more has freed its cache.
    pub(super) place: Place,
}

impl Answer {
    pub(super) fn new(job: Job, stream: Arc<Stream>, place: Place) -> Self {
        Self {
            stream,
            stepped: 0,
            tokenizer: job.tokenizer,
            sampler: job.sampler,
            max_tokens: job.max_tokens,
            logprobs: job.logprobs,
            trim_start: job.trim_start,
            prefix: job.prefix,
            text: TextStream::default(),
            stop: StopFinder::new(job.stops),
            prompt_tokens: job.prompt.len(),
            history: job.prompt,
            lookup: job.prompt_lookup.then(Lookup::default),
            run: None,
            next: Vec::new(),
            place,
        }
    }

    /// Ends the answer; a reader who sees the end finds its slot free.
    pub(super) fn end(self, result: Result<Finish>) {
        let stream = Arc::clone(&self.stream);
        drop(self);
        stream.end(result);
    }

    /// Returns whether reading the prompt has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.run.is_some()
    }

    /// Returns whether the prompt has been read.
    pub(super) fn is_writing(&self) -> bool {
        !self.next.is_empty()
    }

    /// Reads the next piece of the prompt; after the last, writes the first token.
    pub(super) fn read(&mut self, lm: &dyn CausalLm) -> Result<Option<Finish>> {
        let prompt = &self.history;
        let run = self.run.get_or_insert_with(|| lm.resume(prompt));
        let start = run.len();
        let many = prompt.len() - start >= PIECE + FEWEST_TOGETHER;
        let end = if many { start + PIECE } else { prompt.len() };
        let logits = run.read_unless(&prompt[start..end], self.stream.closed())?;
        self.stream.update(|stats| {
            if stats.read_tokens == 0 {
                stats.cached_tokens = start;
            }
            stats.read_tokens = end;
        });
        // At once: a window leaves the beginning of a long prompt behind.
        lm.keep(run.as_mut(), prompt);
        if end < prompt.len() {
            return Ok(None);
        }
        let seconds = self.stream.seconds();
        self.stream.update(|stats| stats.prompt_seconds = seconds);
        self.stream.send(std::mem::take(&mut self.prefix));
        // A prefix may be all that a schema allows.
        if self.sampler.is_done() {
            return Ok(Some(Finish::Stop));
        }
        let finish = self.write(Choice::Logits(logits.to_vec1()?))?;
        Ok(finish.or_else(|| self.full(lm)))
    }

    /// Guesses what follows, at most `most` tokens; returns what is to be read.
    pub(super) fn step(&mut self, lm: &dyn CausalLm, most: usize) -> Option<Step<'_>> {
        self.next.truncate(1);
        let run = self.run.as_mut()?;
        if let Some(lookup) = &mut self.lookup {
            // What is guessed is read, so there must be room; the last token is never read.
            let room = lm.context() - run.len() - 1;
            let left = self.max_tokens - (self.history.len() - self.prompt_tokens);
            self.next.extend_from_slice(lookup.guess(&self.history, most.min(room).min(left.saturating_sub(1))));
        }
        Some(Step { run: run.as_mut(), ids: &self.next })
    }

    /// Returns whether the model may choose: the highest logit is the next token, and nothing else is told of it.
    pub(super) fn is_plain(&self) -> bool {
        self.logprobs.is_none() && self.sampler.is_plain()
    }

    /// Returns how many tokens there are to choose from.
    pub(super) fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// Writes what follows from the choices after each of the tokens of [`Self::step`].
    pub(super) fn follow(&mut self, lm: &dyn CausalLm, choices: Vec<Choice>) -> Result<Option<Finish>> {
        let read = std::mem::take(&mut self.next);
        let before = self.run.as_ref().map_or(0, |run| run.len()) - read.len();
        let (guesses, mut right) = (&read[1..], 0);
        let mut finish = None;
        for (i, choice) in choices.into_iter().enumerate() {
            finish = self.write(choice)?;
            let certain = self.history.last().copied();
            if finish.is_some() || guesses.get(i).copied() != certain {
                break;
            }
            right += 1;
        }
        if !guesses.is_empty() {
            if let Some(lookup) = &mut self.lookup {
                lookup.learn(guesses.len(), right);
            }
            self.stream.update(|stats| {
                stats.drafted_tokens += guesses.len();
                stats.accepted_tokens += right;
            });
        }
        if let Some(run) = &mut self.run {
            run.rewind(before + 1 + right)?;
        }
        Ok(finish.or_else(|| self.full(lm)))
    }

    /// Chooses a token and sends its text; returns why the answer ends, where it does.
    fn write(&mut self, choice: Choice) -> Result<Option<Finish>> {
        let (id, said) = match choice {
            Choice::Best(id) => (id, None),
            Choice::Logits(mut logits) => {
                // A table that is padded to a round number has more rows than there are tokens; what they say means nothing.
                logits.truncate(self.tokenizer.vocab_size());
                let said = self.logprobs.map(|n| (n, Logits::new(&logits)));
                (self.sampler.sample(&mut logits, &self.history, self.prompt_tokens)?, said)
            }
        };
        if self.tokenizer.is_end(id) {
            return Ok(Some(self.flush(Finish::Stop)));
        }
        self.history.push(id);
        let generated = self.history.len() - self.prompt_tokens;
        self.stream.push_logprob(said.map(|(n, logits)| logits.logprob(id, n, &self.tokenizer)));
        self.stream.update(|stats| stats.generated_tokens = generated);
        let mut bytes = self.tokenizer.bytes(id);
        if self.trim_start && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.trim_start = false;
        }
        let (piece, stopped) = self.stop.push(&self.text.push(bytes));
        self.stream.send(piece);
        if stopped {
            return Ok(Some(Finish::StopString));
        }
        if self.sampler.is_done() {
            return Ok(Some(self.flush(Finish::Stop)));
        }
        if generated == self.max_tokens {
            return Ok(Some(self.flush(Finish::Length)));
        }
        self.next = vec![id];
        Ok(None)
    }

    /// Ends the answer where its last token cannot be read.
    fn full(&mut self, lm: &dyn CausalLm) -> Option<Finish> {
        let full = self.run.as_ref().is_some_and(|run| run.len() == lm.context());
        full.then(|| self.flush(Finish::Context))
    }

    /// Sends what was held back.
    fn flush(&mut self, finish: Finish) -> Finish {
        let (piece, stopped) = self.stop.push(&self.text.finish());
        let rest = if stopped { String::new() } else { self.stop.finish() };
        self.stream.send(piece + &rest);
        if stopped { Finish::StopString } else { finish }
    }
}
