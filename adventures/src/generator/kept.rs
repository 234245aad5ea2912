//! What the last answer has read, kept for a prompt that begins alike: a conversation, or the same instructions.

use super::generation::pieces;
use crate::models::{CausalLm, Run};
use std::sync::{Mutex, PoisonError};

/// A run between two answers, at most one: answers side by side begin anew.
#[derive(Default)]
pub(super) struct Kept(Mutex<Option<Read>>);

/// A prompt, and the run that has read it.
struct Read {
    prompt: Vec<u32>,
    run: Box<dyn Run>,
}

impl Kept {
    /// Returns a run that has read the beginning of `prompt`, as far as one is there.
    ///
    /// Pieces that both prompts are read in are taken, whole: an answer is the same to the last bit as without.
    pub(super) fn take(&self, lm: &dyn CausalLm, prompt: &[u32]) -> Box<dyn Run> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Read { prompt: read, mut run }) = kept else { return lm.start() };
        let common = read.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let shared = pieces(read.len()).zip(pieces(prompt.len())).take_while(|(a, b)| a == b && a.end <= common);
        // The last piece is read again: its logits are where the answer begins.
        match shared.map(|(a, _)| a.end).take_while(|end| *end < prompt.len()).last() {
            Some(end) if run.rewind(end).is_ok() => run,
            _ => lm.start(),
        }
    }

    /// Keeps what `run` has read of `prompt`; what follows is forgotten.
    pub(super) fn put(&self, prompt: Vec<u32>, mut run: Box<dyn Run>) {
        if run.rewind(prompt.len()).is_ok() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Read { prompt, run });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use candle_core::{Device, Tensor};

    /// Remembers how much it has read.
    struct Counter(usize);

    impl CausalLm for Counter {
        fn context(&self) -> usize {
            1 << 20
        }
        fn vocab_size(&self) -> usize {
            1
        }
        fn start(&self) -> Box<dyn Run> {
            Box::new(Self(0))
        }
    }

    impl Run for Counter {
        fn read(&mut self, ids: &[u32]) -> Result<Tensor> {
            self.0 += ids.len();
            Ok(Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu)?)
        }
        fn len(&self) -> usize {
            self.0
        }
        fn rewind(&mut self, len: usize) -> Result<()> {
            assert!(len <= self.0);
            self.0 = len;
            Ok(())
        }
    }

    #[test]
    fn whole_pieces_that_both_prompts_have_are_read_once() {
        let lm = Counter(0);
        let kept = Kept::default();
        let prompt = |length: u32, changed: Option<usize>| -> Vec<u32> {
            (0..length).map(|i| if changed == Some(i as usize) { u32::MAX } else { i }).collect()
        };
        for (length, changed, want) in [
            (300, None, 256),
            (300, Some(299), 256),
            (300, Some(256), 256),
            (300, Some(255), 128),
            (300, Some(0), 0),
            (1000, None, 256),
            (264, None, 256),
            // 263 tokens are two pieces, of which the second is longer.
            (263, None, 128),
            (256, None, 128),
            (128, None, 0),
            (1, None, 0),
        ] {
            let mut run = lm.start();
            run.read(&prompt(310, None)).expect("it reads");
            kept.put(prompt(300, None), run);
            assert_eq!(kept.take(&lm, &prompt(length, changed)).len(), want, "{length} {changed:?}");
            assert_eq!(kept.take(&lm, &prompt(length, changed)).len(), 0, "it was taken");
        }
    }

    #[test]
    fn pieces_cover_the_prompt() {
        for length in 0..700 {
            let all: Vec<_> = pieces(length).collect();
            assert_eq!(all.iter().map(ExactSizeIterator::len).sum::<usize>(), length);
            assert!(all.iter().skip(1).all(|piece| piece.len() >= 8), "{all:?}");
            assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].len() == 128), "{all:?}");
        }
    }
}
