//! Logits to a token.
//!
//! The steps are llama.cpp's and come in its order: logit bias, penalties, top-k, typical-p, top-p, min-p, temperature. The
//! vocabulary is never sorted: what cannot be chosen is filtered out first.

use crate::error::{Error, Result, invalid};
use crate::schema::Constraint;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

/// How a token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits; 0 takes the most likely token, whatever `top_p`, `top_k`, `min_p` and `typical_p` are.
    pub temperature: f64,
    /// Keeps the most likely tokens whose probabilities add up to this; 1 keeps all.
    pub top_p: f64,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps tokens at least this share as likely as the most likely one; 0 keeps all.
    pub min_p: f64,
    /// Keeps the tokens whose information is nearest to the entropy, until their probabilities add up to this (Meister et al.
    /// 2023); 1 keeps all.
    pub typical_p: f64,
    /// Divides the positive logits and multiplies the negative ones of recent tokens (Keskar et al. 2019); 1 changes nothing.
    pub repeat_penalty: f64,
    /// How many tokens are recent, prompt included.
    pub repeat_window: usize,
    /// Taken from the logit of a generated token for each time it was generated; from -2 to 2.
    pub frequency_penalty: f64,
    /// Taken from the logit of a generated token once; from -2 to 2.
    pub presence_penalty: f64,
    /// Added to the logits of tokens. Minus infinity bans a token; infinity bans all others, and where several have it, their
    /// own logits decide between them.
    pub logit_bias: BTreeMap<u32, f64>,
    /// Of the random numbers; a fresh one where it is `None`.
    pub seed: Option<u64>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_window: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
        }
    }
}

impl SamplingOptions {
    fn validate(&self, vocab_size: usize) -> Result<()> {
        let Self { temperature, top_p, min_p, typical_p, repeat_penalty, .. } = *self;
        if !temperature.is_finite() || temperature < 0.0 {
            return invalid!("temperature={temperature}: expected 0 or a positive number");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return invalid!("top_p={top_p}: expected a number above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&min_p) {
            return invalid!("min_p={min_p}: expected a number from 0 to 1");
        }
        if !(typical_p > 0.0 && typical_p <= 1.0) {
            return invalid!("typical_p={typical_p}: expected a number above 0, at most 1");
        }
        if !repeat_penalty.is_finite() || repeat_penalty <= 0.0 {
            return invalid!("repeat_penalty={repeat_penalty}: expected a positive number");
        }
        for (name, penalty) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            if !(-2.0..=2.0).contains(&penalty) {
                return invalid!("{name}={penalty}: expected a number from -2 to 2");
            }
        }
        for (id, bias) in &self.logit_bias {
            if *id as usize >= vocab_size {
                return invalid!("logit_bias[{id}]={bias}: the vocabulary has {vocab_size} tokens, 0 the first");
            }
            if bias.is_nan() {
                return invalid!("logit_bias[{id}]=NaN: expected a number; an infinite one bans or forces the token");
            }
        }
        if self.logit_bias.values().filter(|bias| **bias == f64::NEG_INFINITY).count() == vocab_size {
            return invalid!("logit_bias: all {vocab_size} tokens of the vocabulary are banned");
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
    constraint: Option<Constraint>,
}

/// A token and its logit.
type Candidate = (u32, f32);

impl Sampler {
    pub(crate) fn new(options: SamplingOptions, vocab_size: usize) -> Result<Self> {
        options.validate(vocab_size)?;
        // The standard library draws its hash keys from the operating system.
        let seed = options.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        Ok(Self { options, seed, random: ChaCha8Rng::seed_from_u64(seed), constraint: None })
    }

    /// Keeps to `constraint` where there is one.
    pub(crate) fn constrained(self, constraint: Option<Constraint>) -> Self {
        Self { constraint, ..self }
    }

    /// Returns whether nothing may follow what was chosen so far.
    pub(crate) fn is_done(&self) -> bool {
        self.constraint.as_ref().is_some_and(Constraint::is_done)
    }

    /// Returns whether the next token is that of the highest logit, whatever the others are.
    #[allow(clippy::float_cmp, reason = "these numbers themselves are what changes nothing")]
    pub(crate) fn is_plain(&self) -> bool {
        let SamplingOptions { temperature, repeat_penalty, frequency_penalty, presence_penalty, .. } = self.options;
        let penalized = repeat_penalty != 1.0 || frequency_penalty != 0.0 || presence_penalty != 0.0;
        temperature == 0.0 && !penalized && self.options.logit_bias.is_empty() && self.constraint.is_none()
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the next token after `history`, whose first `prompt` tokens were not generated. The logits are left changed.
    ///
    /// Fails where a logit is not a number, for weights or a kernel are broken and any choice would hide it, where
    /// `logit_bias` leaves no token, and where the schema cannot be followed further.
    pub(crate) fn sample(&mut self, logits: &mut [f32], history: &[u32], prompt: usize) -> Result<u32> {
        if has_nan(logits)
            && let Some(id) = logits.iter().position(|x| x.is_nan())
        {
            return Err(Error::Model(candle_core::Error::Msg(format!("the logit of token {id} is not a number"))));
        }
        // First, so that neither a bias nor a filter brings back what the schema forbids, nor counts it.
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits)?;
        }
        let id = self.choose(logits, history, prompt)?;
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(id)?;
        }
        Ok(id)
    }

    fn choose(&mut self, logits: &mut [f32], history: &[u32], prompt: usize) -> Result<u32> {
        self.bias(logits);
        self.penalize_recent(logits, history);
        self.penalize_generated(logits, &history[prompt..]);
        let biased = !self.options.logit_bias.is_empty();
        let form = self.constraint.as_ref().map(Constraint::name);
        if (biased || form.is_some()) && logits.iter().all(|x| *x == f32::NEG_INFINITY) {
            return match (biased, form) {
                (true, Some(form)) => invalid!("logit_bias: every token that the {form} allows here is banned"),
                (false, Some(form)) => invalid!("{form}: the model gives every token that it allows here no chance"),
                (_, None) => invalid!("logit_bias: every token that the model could choose is banned"),
            };
        }
        if self.options.temperature == 0.0 {
            return Ok(most_likely(logits));
        }
        let candidates = self.candidates(logits);
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

    fn bias(&self, logits: &mut [f32]) {
        let bias = &self.options.logit_bias;
        let forced: Vec<Candidate> =
            bias.iter().filter(|(_, b)| **b == f64::INFINITY).map(|(id, _)| (*id, logits[*id as usize])).collect();
        if !forced.is_empty() {
            logits.fill(f32::NEG_INFINITY);
            for (id, x) in forced {
                logits[id as usize] = x;
            }
            return;
        }
        for (id, b) in bias {
            let x = &mut logits[*id as usize];
            // Not a sum where both are infinite: it is not a number.
            *x = if *b == f64::NEG_INFINITY { f32::NEG_INFINITY } else { (f64::from(*x) + b) as f32 };
        }
    }

    fn penalize_recent(&self, logits: &mut [f32], history: &[u32]) {
        // As f32 neither 0 nor infinite: with such a one 0 and infinite logits make what is not a number.
        let penalty = (self.options.repeat_penalty as f32).clamp(f32::MIN_POSITIVE, f32::MAX);
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

    fn penalize_generated(&self, logits: &mut [f32], generated: &[u32]) {
        let SamplingOptions { frequency_penalty, presence_penalty, .. } = self.options;
        if frequency_penalty == 0.0 && presence_penalty == 0.0 {
            return;
        }
        // OpenAI's formula: what the prompt says counts for nothing.
        let mut counts = HashMap::new();
        for id in generated {
            *counts.entry(*id).or_insert(0_u32) += 1;
        }
        for (id, count) in counts {
            if let Some(x) = logits.get_mut(id as usize) {
                *x = (f64::from(*x) - f64::from(count) * frequency_penalty - presence_penalty) as f32;
            }
        }
    }

    /// Returns the tokens that may be chosen.
    fn candidates(&self, logits: &[f32]) -> Vec<Candidate> {
        // Differences of infinite logits are not numbers; the largest number is as good as infinity.
        let possible = logits.iter().map(|x| x.min(f32::MAX));
        let mut candidates = (0..).zip(possible).filter(|(_, x)| *x > f32::NEG_INFINITY).collect();
        self.top_k(&mut candidates);
        self.typical_p(&mut candidates);
        self.top_p(&mut candidates);
        self.min_p(&mut candidates);
        candidates
    }

    fn top_k(&self, candidates: &mut Vec<Candidate>) {
        let k = self.options.top_k;
        if k > 0 && k < candidates.len() {
            candidates.select_nth_unstable_by(k - 1, by_likelihood);
            candidates.truncate(k);
        }
    }

    fn typical_p(&self, candidates: &mut Vec<Candidate>) {
        let p = self.options.typical_p;
        if p >= 1.0 || candidates.is_empty() {
            return;
        }
        let total = log_sum_exp(candidates.iter().map(|(_, x)| *x));
        let entropy: f64 = candidates.iter().map(|(_, x)| total - f64::from(*x)).map(|info| info * (-info).exp()).sum();
        let ranked = |c: &Candidate| ((total - f64::from(c.1) - entropy).abs(), *c);
        let nearest = |a: &(f64, Candidate), b: &(f64, Candidate)| a.0.total_cmp(&b.0).then(a.1.0.cmp(&b.1.0));
        // Unlikely tokens can be nearer than likely ones, so none can be left out first. Halving finds the last one needed in
        // linear time all the same: what is nearer than the middle is added up, and only one half is looked into.
        let mut ranks: Vec<_> = candidates.iter().map(ranked).collect();
        let (mut start, mut end, mut reached) = (0, ranks.len(), 0.0);
        while end - start > 1 {
            let middle = start + (end - start) / 2;
            ranks[start..end].select_nth_unstable_by(middle - start, nearest);
            let half: f64 = ranks[start..middle].iter().map(|(_, (_, x))| (f64::from(*x) - total).exp()).sum();
            if reached + half >= p {
                end = middle;
            } else {
                start = middle;
                reached += half;
            }
        }
        // In the order of before, so that a draw does not depend on the algorithm.
        candidates.retain(|c| nearest(&ranked(c), &ranks[start]).is_le());
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
    // Adding 0 makes a 0 of -0, its equal.
    (b.1 + 0.0).total_cmp(&(a.1 + 0.0)).then(a.0.cmp(&b.0))
}

/// Returns the `n` most likely tokens, the first most.
pub(crate) fn likeliest(logits: &[f32], n: usize) -> Vec<u32> {
    let mut candidates: Vec<Candidate> = (0..).zip(logits.iter().copied()).collect();
    if n < candidates.len() {
        candidates.select_nth_unstable_by(n, by_likelihood);
        candidates.truncate(n);
    }
    candidates.sort_unstable_by(by_likelihood);
    candidates.into_iter().map(|(id, _)| id).collect()
}

/// Returns the logarithm of the sum of the exponentials: a logit less this is a log probability.
pub(crate) fn log_sum_exp(logits: impl Iterator<Item = f32> + Clone) -> f64 {
    let max = f64::from(logits.clone().fold(f32::NEG_INFINITY, f32::max));
    max + logits.map(|x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}

fn max(candidates: &[Candidate]) -> f32 {
    candidates.iter().map(|(_, x)| *x).fold(f32::NEG_INFINITY, f32::max)
}

/// As many numbers as the widest registers hold: what is done to each on its own is done to all at once.
const LANES: usize = 16;

/// Returns whether a logit is not a number.
fn has_nan(logits: &[f32]) -> bool {
    let (rows, rest) = logits.as_chunks::<LANES>();
    let mut found = [false; LANES];
    for row in rows {
        for (found, x) in found.iter_mut().zip(row) {
            *found |= x.is_nan();
        }
    }
    found.contains(&true) || rest.iter().any(|x| x.is_nan())
}

/// The first of the largest; all are numbers.
fn most_likely(logits: &[f32]) -> u32 {
    let (rows, rest) = logits.as_chunks::<LANES>();
    let mut best = [f32::NEG_INFINITY; LANES];
    for row in rows {
        for (best, x) in best.iter_mut().zip(row) {
            *best = if *x > *best { *x } else { *best };
        }
    }
    let best = best.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    // Row by row, so that the search is as wide.
    let row = rows.iter().position(|row| row.iter().filter(|x| **x >= best).count() > 0);
    let start = row.map_or(rows.len() * LANES, |row| row * LANES);
    let within = logits[start..].iter().position(|x| *x >= best);
    (start + within.unwrap_or(0)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(options: SamplingOptions, logits: &[f32], times: usize) -> BTreeMap<u32, usize> {
        let mut sampler = Sampler::new(options, logits.len()).unwrap();
        let mut counts = BTreeMap::new();
        for _ in 0..times {
            *counts.entry(sampler.sample(&mut logits.to_vec(), &[], 0).unwrap()).or_default() += 1;
        }
        counts
    }

    fn options() -> SamplingOptions {
        SamplingOptions { temperature: 1.0, seed: Some(7), ..SamplingOptions::default() }
    }

    fn biased(bias: &[(u32, f64)]) -> SamplingOptions {
        SamplingOptions { logit_bias: bias.iter().copied().collect(), ..options() }
    }

    #[test]
    fn zero_temperature_takes_the_first_maximum() {
        let mut sampler = Sampler::new(SamplingOptions::default(), 9).unwrap();
        assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0, -1.0], &[], 0).unwrap(), 1);
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY; 3], &[], 0).unwrap(), 0);
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, f32::INFINITY], &[], 0).unwrap(), 1);
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
            let sampler = Sampler::new(SamplingOptions { top_p: p, ..options() }, 5000).unwrap();
            let mut got = (0..).zip(logits.iter().copied()).collect();
            sampler.top_p(&mut got);
            assert_eq!(got, sorted[..want], "p {p}");
        }
    }

    #[test]
    fn penalty_lowers_recent_tokens_once() {
        let sampler = |window| {
            Sampler::new(
                SamplingOptions { repeat_penalty: 2.0, repeat_window: window, ..SamplingOptions::default() },
                9,
            )
            .unwrap()
        };
        let mut logits = [4.0, -4.0, 3.0];
        sampler(64).sample(&mut logits, &[0, 0, 1, 1, 99], 0).unwrap();
        assert_eq!(logits, [2.0, -8.0, 3.0]);
        let mut logits = [4.0, -4.0, 3.0];
        sampler(1).sample(&mut logits, &[0, 1], 0).unwrap();
        assert_eq!(logits, [4.0, -8.0, 3.0]);
        let mut logits = [4.0, -4.0, 3.0];
        assert_eq!(sampler(0).sample(&mut logits, &[0], 0).unwrap(), 0);
    }

    /// What the options say, in the plainest words: everything is sorted, everything is normalized.
    fn plain(options: &SamplingOptions, logits: &[f32], history: &[u32], prompt: usize) -> Vec<Candidate> {
        let forced = options.logit_bias.values().any(|b| *b == f64::INFINITY);
        let mut left: Vec<(u32, f64)> = Vec::new();
        for (id, x) in (0..).zip(logits) {
            let bias = options.logit_bias.get(&id).copied().unwrap_or_default();
            if bias == f64::NEG_INFINITY || forced && bias != f64::INFINITY {
                continue;
            }
            let mut x = f64::from(*x) + if forced { 0.0 } else { bias };
            if history[history.len().saturating_sub(options.repeat_window)..].contains(&id) {
                x = if x > 0.0 { x / options.repeat_penalty } else { x * options.repeat_penalty };
            }
            let count = history[prompt..].iter().filter(|other| **other == id).count();
            x -= options.frequency_penalty * count as f64;
            x -= if count > 0 { options.presence_penalty } else { 0.0 };
            left.push((id, x));
        }
        left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if options.top_k > 0 {
            left.truncate(options.top_k);
        }
        let probabilities = |left: &[(u32, f64)]| -> Vec<f64> {
            let total: f64 = left.iter().map(|(_, x)| x.exp()).sum();
            left.iter().map(|(_, x)| x.exp() / total).collect()
        };
        // As many of the first as it takes to reach `p`.
        let first = |left: &mut Vec<(u32, f64)>, p: f64| {
            if p >= 1.0 {
                return;
            }
            let mut reached = 0.0;
            let last = probabilities(left).into_iter().position(|q| {
                reached += q;
                reached >= p
            });
            left.truncate(last.map_or(left.len(), |last| last + 1));
        };
        let entropy: f64 = probabilities(&left).iter().map(|q| -q * q.ln()).sum();
        let information: BTreeMap<u32, f64> =
            left.iter().zip(probabilities(&left)).map(|((id, _), q)| (*id, -q.ln())).collect();
        left.sort_by(|a, b| (information[&a.0] - entropy).abs().total_cmp(&(information[&b.0] - entropy).abs()));
        first(&mut left, options.typical_p);
        left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        first(&mut left, options.top_p);
        let most = probabilities(&left)[0];
        let likely = probabilities(&left).iter().filter(|q| **q >= options.min_p * most).count();
        left.truncate(likely);
        left.into_iter().map(|(id, x)| (id, x as f32)).collect()
    }

    #[test]
    fn options_together_do_what_plain_code_does() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut unit = || (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let (mut compared, mut dropped) = (0, 0);
        for round in 0..500 {
            let vocab = 1 + (unit() * 300.0) as usize;
            let spread = unit() * 12.0;
            let mut logits: Vec<f32> = (0..vocab).map(|_| ((unit() - 0.7) * spread) as f32).collect();
            if round % 2 == 0 {
                // Ties.
                logits = logits.into_iter().map(|x| (x * 4.0).round() / 4.0).collect();
            }
            let mut id = || (unit() * vocab as f64) as u32;
            let history: Vec<u32> = (0..round % 40).map(|_| id()).collect();
            let biased: Vec<u32> = (0..round % 7).map(|_| id()).collect();
            let mut maybe = |off: f64, value: &dyn Fn(f64) -> f64| if unit() < 0.5 { off } else { value(unit()) };
            let bias = [-1.5, 2.5, -100.0, f64::NEG_INFINITY, if round % 3 == 0 { f64::INFINITY } else { 0.5 }];
            let options = SamplingOptions {
                temperature: 1.0,
                top_p: maybe(1.0, &|u| u.max(1e-9)),
                top_k: maybe(0.0, &|u| u * 1.2 * vocab as f64) as usize,
                min_p: maybe(0.0, &|u| u * u * u),
                typical_p: maybe(1.0, &|u| u.max(1e-9)),
                repeat_penalty: maybe(1.0, &|u| 0.5 + u),
                repeat_window: maybe(64.0, &|u| u * 20.0) as usize,
                frequency_penalty: maybe(0.0, &|u| 4.0 * u - 2.0),
                presence_penalty: maybe(0.0, &|u| 4.0 * u - 2.0),
                logit_bias: biased.into_iter().zip(bias.into_iter().cycle()).collect(),
                seed: Some(round as u64),
            };
            let prompt = history.len() / 2;
            let Ok(mut sampler) = Sampler::new(options.clone(), vocab) else { continue };
            let mut changed = logits.clone();
            let chosen = sampler.sample(&mut changed, &history, prompt).unwrap();
            let want = plain(&options, &logits, &history, prompt);
            let mut got = sampler.candidates(&changed);
            got.sort_by(by_likelihood);
            compared += 1;
            dropped += vocab - got.len();
            let ids = |candidates: &[Candidate]| candidates.iter().map(|(id, _)| *id).collect::<Vec<_>>();
            assert_eq!(ids(&got), ids(&want), "{options:?}");
            assert!(got.iter().zip(&want).all(|(a, b)| (a.1 - b.1).abs() < 1e-4), "{got:?} {want:?}");
            assert!(ids(&want).contains(&chosen));
        }
        assert!(compared > 450 && dropped > 10_000, "{compared} {dropped}");
    }

    #[test]
    fn typical_keeps_what_is_nearest_to_the_entropy() {
        let kept = |p, likely: f32| {
            let unlikely = ((1.0 - likely) * 100.0).round() as usize;
            let logits = [vec![0.01_f32.ln(); unlikely], vec![likely.ln()]].concat();
            draw(SamplingOptions { typical_p: p, ..options() }, &logits, 20_000).into_keys().collect::<Vec<_>>()
        };
        // 0.6 and 40 times 0.01: the entropy is 2.15 nats, the likely token 1.64 away from it, the unlikely ones 2.46.
        assert_eq!(kept(0.595, 0.6), [40]);
        assert_eq!(kept(0.605, 0.6), [0, 40]);
        // 0.4 and 60 times 0.01: the entropy is 3.13 nats, the likely token 2.21 away from it, the unlikely ones 1.47.
        assert_eq!(kept(0.495, 0.4), (0..50).collect::<Vec<_>>(), "of equals the lower id");
        assert_eq!(kept(0.595, 0.4), (0..60).collect::<Vec<_>>());
        assert_eq!(kept(0.605, 0.4), (0..61).collect::<Vec<_>>());
        assert_eq!(kept(1e-9, 0.4), [0]);
        // One candidate has an entropy of 0, and a token without a probability no information.
        let alone = SamplingOptions { typical_p: 0.1, ..options() };
        assert_eq!(draw(alone.clone(), &[-3.0], 9).into_keys().collect::<Vec<_>>(), [0]);
        assert_eq!(draw(alone.clone(), &[f32::MIN, 3.0, f32::NEG_INFINITY], 9).into_keys().collect::<Vec<_>>(), [1]);
        assert_eq!(draw(alone, &[0.0, f32::INFINITY], 9).into_keys().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn generated_tokens_are_penalized_and_those_of_the_prompt_are_not() {
        let mut sampler = Sampler::new(
            SamplingOptions { frequency_penalty: 0.5, presence_penalty: 1.0, ..SamplingOptions::default() },
            4,
        )
        .unwrap();
        let mut logits = [4.0, -4.0, 3.0, 0.0];
        sampler.sample(&mut logits, &[0, 1, 1, 3, 0, 1, 99, 0], 3).unwrap();
        assert_eq!(logits, [2.0, -5.5, 3.0, -1.5]);
    }

    #[test]
    fn bias_bans_and_forces() {
        let choose = |bias: &[(u32, f64)], logits: [f32; 3]| -> Result<_> {
            let greedy = SamplingOptions { temperature: 0.0, ..biased(bias) };
            let greedy = Sampler::new(greedy, 3)?.sample(&mut logits.clone(), &[], 0)?;
            Ok((greedy, draw(biased(bias), &logits, 2000).into_keys().collect::<Vec<_>>()))
        };
        let (ban, force) = (f64::NEG_INFINITY, f64::INFINITY);
        let error = |result: Result<(u32, Vec<u32>)>| result.unwrap_err().to_string();
        assert_eq!(choose(&[(0, ban)], [9.0, 1.0, 2.0]).unwrap(), (2, vec![1, 2]));
        assert_eq!(choose(&[(1, force)], [9.0, -1e30, 2.0]).unwrap(), (1, vec![1]));
        assert_eq!(choose(&[(1, 1e300)], [9.0, 1.0, 2.0]).unwrap(), (1, vec![1]));
        assert_eq!(choose(&[(0, -1e300), (2, -1e300)], [9.0, 1.0, 2.0]).unwrap(), (1, vec![1]));
        assert_eq!(choose(&[(0, 5.0), (1, force), (2, force)], [9.0, 1.0, 2.0]).unwrap(), (2, vec![1, 2]));
        assert!(error(choose(&[(1, ban), (2, ban)], [f32::NEG_INFINITY, f32::INFINITY, 0.0])).contains("is banned"));
        assert!(error(choose(&[(0, ban), (1, ban), (2, ban)], [0.0; 3])).contains("all 3 tokens"));
        // A penalty that is 0 or infinite as f32 neither lifts a ban nor makes a logit that is not a number.
        for repeat_penalty in [1e-300, 1e300] {
            let options = SamplingOptions { temperature: 0.0, repeat_penalty, ..biased(&[(0, ban)]) };
            let mut logits = [0.0, 0.0, -1.0];
            assert_eq!(Sampler::new(options, 3).unwrap().sample(&mut logits, &[0, 1], 2).unwrap(), 1);
            assert_eq!(logits[..2], [f32::NEG_INFINITY, 0.0]);
        }
    }

    #[test]
    fn same_seed_same_tokens() {
        let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
        let run = |seed| {
            let mut sampler =
                Sampler::new(SamplingOptions { temperature: 0.9, seed, ..SamplingOptions::default() }, 100).unwrap();
            (0..50).map(|_| sampler.sample(&mut logits.clone(), &[], 0).unwrap()).collect::<Vec<_>>()
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
            (SamplingOptions { typical_p: 0.0, ..options() }, "typical_p=0"),
            (SamplingOptions { typical_p: f64::NAN, ..options() }, "typical_p=NaN"),
            (SamplingOptions { repeat_penalty: 0.0, ..options() }, "repeat_penalty=0"),
            (SamplingOptions { frequency_penalty: 2.1, ..options() }, "frequency_penalty=2.1"),
            (SamplingOptions { presence_penalty: f64::NAN, ..options() }, "presence_penalty=NaN"),
            (biased(&[(1, f64::NAN)]), "logit_bias[1]=NaN"),
            (biased(&[(0, 1.0), (9, -1.0)]), "logit_bias[9]=-1: the vocabulary has 9 tokens"),
        ] {
            assert!(Sampler::new(options, 9).unwrap_err().to_string().contains(word), "{word}");
        }
        let error = Sampler::new(options(), 2).unwrap().sample(&mut [0.0, f32::NAN], &[], 0).unwrap_err();
        assert!(error.to_string().contains("the logit of token 1 is not a number"));
    }
}
