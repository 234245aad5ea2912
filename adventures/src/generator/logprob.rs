//! How likely the tokens of an answer were.

use crate::sampling::{likeliest, log_sum_exp};
use crate::tokenizer::Tokenizer;

/// A token and its log probability as the model said it: at temperature 1, before any bias, penalty or filter.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// What it stands for, which need not be whole characters; nothing for a control token.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability; finite.
    pub logprob: f64,
    /// Which tokens were most likely in its place, the first most; none where it is itself such an alternative.
    pub alternatives: Vec<TokenLogprob>,
}

/// The logits of a token before it is chosen, of which sampling leaves others.
pub(super) struct Logits(Vec<f32>);

impl Logits {
    pub(super) fn new(logits: &[f32]) -> Self {
        // Differences of infinite logits are not numbers.
        Self(logits.iter().map(|x| x.clamp(f32::MIN, f32::MAX)).collect())
    }

    /// Returns what they say of `chosen`, with the `n` most likely alternatives.
    pub(super) fn logprob(&self, chosen: u32, n: usize, tokenizer: &Tokenizer) -> TokenLogprob {
        let total = log_sum_exp(self.0.iter().copied());
        let token = |id: u32, alternatives| TokenLogprob {
            id,
            bytes: tokenizer.bytes(id).to_vec(),
            logprob: f64::from(self.0[id as usize]) - total,
            alternatives,
        };
        let alternatives = likeliest(&self.0, n).into_iter().map(|id| token(id, Vec::new())).collect();
        token(chosen, alternatives)
    }
}
