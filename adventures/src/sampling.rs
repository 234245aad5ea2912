//! Logits to a token.
//!
//! The steps are llama.cpp's and come in its order: repeat penalty, top-k, top-p, min-p, temperature. The vocabulary is never
//! sorted: what cannot be chosen is filtered out first.

use crate::error::{Error, Result, invalid};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// How a token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Keeps the most likely tokens whose probabilities add up to this; 1 keeps all.
    pub top_p: f64,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps tokens at least this share as likely as the most likely one; 0 keeps all.
    pub min_p: f64,
    /// Divides the positive logits and multiplies the negative ones of recent tokens (Keskar et al. 2019); 1 changes nothing.
    pub repeat_penalty: f64,
    /// How many tokens are recent, prompt included.
    pub repeat_window: usize,
    /// Of the random numbers; a fresh one where it is `None`.
    pub seed: Option<u64>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, repeat_penalty: 1.0, repeat_window: 64, seed: None }
    }
}

impl SamplingOptions {
    fn validate(&self) -> Result<()> {
        let Self { temperature, top_p, min_p, repeat_penalty, .. } = *self;
        if !temperature.is_finite() || temperature < 0.0 {
            return invalid!("temperature={temperature}: expected 0 or a positive number");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return invalid!("top_p={top_p}: expected a number above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&min_p) {
            return invalid!("min_p={min_p}: expected a number from 0 to 1");
        }
        if !repeat_penalty.is_finite() || repeat_penalty <= 0.0 {
            return invalid!("repeat_penalty={repeat_penalty}: expected a positive number");
        }
        Ok(())
    }
}

/// Chooses tokens, with random numbers of its own.
#[derive(Debug)]
pub(crate) struct Sampler {
    options: SamplingOptions,
    seed: u64,
    random: ChaCha8Rng,
}

/// A token and its logit.
type Candidate = (u32, f32);

impl Sampler {
    pub(crate) fn new(options: SamplingOptions) -> Result<Self> {
        options.validate()?;
        // The standard library draws its hash keys from the operating system.
        let seed = options.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        Ok(Self { options, seed, random: ChaCha8Rng::seed_from_u64(seed) })
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the next token after `history`. The logits are left changed.
    ///
    /// Fails where a logit is not a number: weights or a kernel are broken, and any choice would hide it.
    pub(crate) fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32> {
        if let Some(id) = logits.iter().position(|x| x.is_nan()) {
            return Err(Error::Model(candle_core::Error::Msg(format!("the logit of token {id} is not a number"))));
        }
        self.penalize(logits, history);
        if self.options.temperature == 0.0 {
            return Ok(most_likely(logits));
        }
        let mut candidates: Vec<Candidate> = (0..).zip(logits.iter().copied()).filter(|(_, x)| x.is_finite()).collect();
        self.top_k(&mut candidates);
        self.top_p(&mut candidates);
        self.min_p(&mut candidates);
        if candidates.is_empty() {
            return Ok(most_likely(logits));
        }
        let max = max(&candidates);
        let weights: Vec<f64> =
            candidates.iter().map(|(_, x)| (f64::from(x - max) / self.options.temperature).exp()).collect();
        // 53 random bits: a number in [0, 1).
        let unit = (self.random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let mut left = unit * weights.iter().sum::<f64>();
        for ((id, _), weight) in candidates.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        Ok(candidates[candidates.len() - 1].0)
    }

    fn penalize(&self, logits: &mut [f32], history: &[u32]) {
        let penalty = self.options.repeat_penalty as f32;
        if penalty.total_cmp(&1.0).is_eq() {
            return;
        }
        let recent = &history[history.len().saturating_sub(self.options.repeat_window)..];
        for id in recent.iter().copied().collect::<HashSet<_>>() {
            if let Some(x) = logits.get_mut(id as usize) {
                *x = if *x > 0.0 { *x / penalty } else { *x * penalty };
            }
        }
    }

    fn top_k(&self, candidates: &mut Vec<Candidate>) {
        let k = self.options.top_k;
        if k > 0 && k < candidates.len() {
            candidates.select_nth_unstable_by(k - 1, by_likelihood);
            candidates.truncate(k);
        }
    }

    fn top_p(&self, candidates: &mut Vec<Candidate>) {
        let p = self.options.top_p;
        if p >= 1.0 || candidates.is_empty() {
            return;
        }
        let max = max(candidates);
        let weight = |x: f32| f64::from(x - max).exp();
        let total: f64 = candidates.iter().map(|(_, x)| weight(*x)).sum();
        // What is below this adds up to at most 1 - p, so none of it is needed to reach p.
        let floor = (1.0 - p) * total / candidates.len() as f64;
        let all = candidates.len();
        candidates.retain(|(_, x)| weight(*x) >= floor);
        debug_assert!(!candidates.is_empty() && candidates.len() <= all);
        candidates.sort_unstable_by(by_likelihood);
        let mut reached = 0.0;
        let kept = candidates.iter().position(|(_, x)| {
            reached += weight(*x);
            reached >= p * total
        });
        candidates.truncate(kept.map_or(candidates.len(), |last| last + 1));
    }

    fn min_p(&self, candidates: &mut Vec<Candidate>) {
        if self.options.min_p > 0.0 && !candidates.is_empty() {
            let floor = max(candidates) + (self.options.min_p as f32).ln();
            candidates.retain(|(_, x)| *x >= floor);
        }
    }
}

/// Most likely first; of equals the lower id, so that the order does not depend on the algorithm.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "what the standard library's sorting calls")]
fn by_likelihood(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn max(candidates: &[Candidate]) -> f32 {
    candidates.iter().map(|(_, x)| *x).fold(f32::NEG_INFINITY, f32::max)
}

/// The first of the largest.
fn most_likely(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn draw(options: SamplingOptions, logits: &[f32], times: usize) -> BTreeMap<u32, usize> {
        let mut sampler = Sampler::new(options).unwrap();
        let mut counts = BTreeMap::new();
        for _ in 0..times {
            *counts.entry(sampler.sample(&mut logits.to_vec(), &[]).unwrap()).or_default() += 1;
        }
        counts
    }

    fn options() -> SamplingOptions {
        SamplingOptions { temperature: 1.0, seed: Some(7), ..SamplingOptions::default() }
    }

    #[test]
    fn zero_temperature_takes_the_first_maximum() {
        let mut sampler = Sampler::new(SamplingOptions::default()).unwrap();
        assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0, -1.0], &[]).unwrap(), 1);
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY; 3], &[]).unwrap(), 0);
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, f32::INFINITY], &[]).unwrap(), 1);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0_f32, 1.0, 2.0];
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        for (id, count) in draw(options(), &logits, 30_000) {
            let want = f64::from(logits[id as usize]).exp() / total;
            assert!((count as f64 / 30_000.0 - want).abs() < 0.01, "token {id}: {count}");
        }
        let sharp = draw(SamplingOptions { temperature: 0.05, ..options() }, &logits, 2000);
        assert_eq!(sharp.keys().copied().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn filters_keep_what_they_say() {
        // Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625.
        let logits: Vec<f32> = [8.0_f32, 4.0, 2.0, 1.0, 1.0].iter().map(|x| x.ln()).collect();
        let kept = |options| draw(options, &logits, 5000).into_keys().collect::<Vec<_>>();
        assert_eq!(kept(options()), [0, 1, 2, 3, 4]);
        assert_eq!(kept(SamplingOptions { top_k: 2, ..options() }), [0, 1]);
        assert_eq!(kept(SamplingOptions { top_k: 4, ..options() }), [0, 1, 2, 3], "of equals the lower id");
        assert_eq!(kept(SamplingOptions { top_k: 99, ..options() }), [0, 1, 2, 3, 4]);
        assert_eq!(kept(SamplingOptions { top_p: 0.5, ..options() }), [0]);
        assert_eq!(kept(SamplingOptions { top_p: 0.51, ..options() }), [0, 1]);
        assert_eq!(kept(SamplingOptions { top_p: 0.8, ..options() }), [0, 1, 2]);
        assert_eq!(kept(SamplingOptions { top_p: 1e-6, ..options() }), [0]);
        assert_eq!(kept(SamplingOptions { min_p: 0.2, ..options() }), [0, 1, 2]);
        assert_eq!(kept(SamplingOptions { min_p: 1.0, ..options() }), [0]);
    }

    #[test]
    fn nucleus_equals_that_of_a_sorted_vocabulary() {
        let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 5000) as f32 / 400.0).collect();
        for p in [0.1, 0.5, 0.9, 0.99, 0.9999] {
            let mut sorted: Vec<Candidate> = (0..).zip(logits.iter().copied()).collect();
            sorted.sort_by(by_likelihood);
            let total: f64 = sorted.iter().map(|(_, x)| f64::from(x - sorted[0].1).exp()).sum();
            let mut reached = 0.0;
            let mut want = 0;
            while reached < p * total {
                reached += f64::from(sorted[want].1 - sorted[0].1).exp();
                want += 1;
            }
            let sampler = Sampler::new(SamplingOptions { top_p: p, ..options() }).unwrap();
            let mut got = (0..).zip(logits.iter().copied()).collect();
            sampler.top_p(&mut got);
            assert_eq!(got, sorted[..want], "p {p}");
        }
    }

    #[test]
    fn penalty_lowers_recent_tokens_once() {
        let sampler = |window| {
            Sampler::new(SamplingOptions { repeat_penalty: 2.0, repeat_window: window, ..SamplingOptions::default() })
                .unwrap()
        };
        let mut logits = [4.0, -4.0, 3.0];
        sampler(64).sample(&mut logits, &[0, 0, 1, 1, 99]).unwrap();
        assert_eq!(logits, [2.0, -8.0, 3.0]);
        let mut logits = [4.0, -4.0, 3.0];
        sampler(1).sample(&mut logits, &[0, 1]).unwrap();
        assert_eq!(logits, [4.0, -8.0, 3.0]);
        let mut logits = [4.0, -4.0, 3.0];
        assert_eq!(sampler(0).sample(&mut logits, &[0]).unwrap(), 0);
    }

    #[test]
    fn same_seed_same_tokens() {
        let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
        let run = |seed| {
            let mut sampler =
                Sampler::new(SamplingOptions { temperature: 0.9, seed, ..SamplingOptions::default() }).unwrap();
            (0..50).map(|_| sampler.sample(&mut logits.clone(), &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(Some(1)), run(Some(1)));
        assert_ne!(run(Some(1)), run(Some(2)));
        assert_ne!(run(None), run(None));
    }

    #[test]
    fn bad_options_and_logits_are_named() {
        for (options, word) in [
            (SamplingOptions { temperature: -0.1, ..options() }, "temperature=-0.1"),
            (SamplingOptions { temperature: f64::NAN, ..options() }, "temperature=NaN"),
            (SamplingOptions { top_p: 0.0, ..options() }, "top_p=0"),
            (SamplingOptions { top_p: 1.5, ..options() }, "top_p=1.5"),
            (SamplingOptions { min_p: -1.0, ..options() }, "min_p=-1"),
            (SamplingOptions { repeat_penalty: 0.0, ..options() }, "repeat_penalty=0"),
        ] {
            assert!(Sampler::new(options).unwrap_err().to_string().contains(word), "{word}");
        }
        let error = Sampler::new(options()).unwrap().sample(&mut [0.0, f32::NAN], &[]).unwrap_err();
        assert!(error.to_string().contains("the logit of token 1 is not a number"));
    }
}
