//! The configuration of a GGUF file.

use super::config::{Config, Family, MAX_LAYERS, Pairs, Rotary};
use super::rope::Yarn;
use super::weights::Source;
use crate::error::{Result, invalid, unsupported};
use crate::gguf::{Array, FromValue, Gguf, Value};
use std::sync::Arc;

/// Reads keys of the file's architecture.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn find<T: FromValue<'a>>(&self, name: &str) -> Result<Option<T>> {
        self.gguf.metadata.find(&self.key(name))
    }

    fn get<T: FromValue<'a>>(&self, name: &str) -> Result<T> {
        self.gguf.metadata.get(&self.key(name))
    }

    /// A number that some files give layer by layer.
    fn uniform(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        if !matches!(self.gguf.metadata.value(&key), Some(Value::Array(_))) {
            return self.find(name);
        }
        let list: Vec<usize> = self.gguf.metadata.list(&key)?;
        match list.first() {
            Some(first) if list.iter().all(|n| n == first) => Ok(Some(*first)),
            _ => unsupported!("{}: {key} differs between layers", self.gguf.name()),
        }
    }

    /// The positions that the file asks for, but for the factors of Llama 3.
    fn rotary(&self, base: f32, dims: usize) -> Result<Rotary> {
        let factor: Option<f32> = match self.find("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.find("rope.scale_linear")?,
        };
        let factor = factor.filter(|f| *f != 0.0).unwrap_or(1.0);
        let kind: Option<&str> = self.find("rope.scaling.type")?;
        match kind {
            Some("none") => Ok(Rotary::new(base)),
            None | Some("linear") => Ok(Rotary { factor, ..Rotary::new(base) }),
            Some("yarn") => Ok(self.yarn(factor)?.rotary(base, dims)),
            Some(other) => unsupported!(
                "{}: rope scaling {other:?}; supported are \"none\", \"linear\", \"yarn\" and the factors of Llama 3",
                self.gguf.name()
            ),
        }
    }

    fn yarn(&self, factor: f32) -> Result<Yarn> {
        let original = match self.find::<u32>("rope.scaling.original_context_length")? {
            Some(original) => original,
            None => self.get("context_length")?,
        };
        let share: Option<f32> = self.find("rope.scaling.yarn_log_multiplier")?;
        let sharpness = match share.filter(|share| *share != 0.0) {
            Some(share) => Yarn::sharpness(factor, 1.0) / Yarn::sharpness(factor, share),
            None => Yarn::sharpness(factor, 1.0),
        };
        Ok(Yarn {
            factor,
            original: original as f32,
            fast: self.find("rope.scaling.yarn_beta_fast")?.unwrap_or(Yarn::FAST),
            slow: self.find("rope.scaling.yarn_beta_slow")?.unwrap_or(Yarn::SLOW),
            truncate: true,
            magnitude: sharpness * self.find("rope.scaling.attn_factor")?.unwrap_or(1.0),
        })
    }
}

/// Returns the configuration of `gguf`.
pub(super) fn config(gguf: &Arc<Gguf>) -> Result<Config> {
    let architecture = gguf.metadata.str("general.architecture")?;
    let family = Family::find(architecture)?;
    let keys = Keys { gguf, architecture };
    let layers: usize = keys.get("block_count")?;
    if layers > MAX_LAYERS {
        return invalid!("{}: {} is {layers}, at most {MAX_LAYERS} are allowed", gguf.name(), keys.key("block_count"));
    }
    let hidden: usize = keys.get("embedding_length")?;
    let Some(heads @ 1..) = keys.uniform("attention.head_count")? else {
        return invalid!("{}: {} is missing or 0", gguf.name(), keys.key("attention.head_count"));
    };
    let head_dim = keys.find("attention.key_length")?.unwrap_or(hidden / heads);
    if let Some(value_dim) = keys.find::<usize>("attention.value_length")?
        && value_dim != head_dim
    {
        return unsupported!("{}: values of {value_dim} numbers beside keys of {head_dim}", gguf.name());
    }
    if keys.find::<usize>("expert_count")?.is_some_and(|n| n > 0) {
        return unsupported!("{}: a mixture of experts", gguf.name());
    }
    let rotary_dims = keys.find("rope.dimension_count")?.unwrap_or(head_dim);
    let base = keys.find("rope.freq_base")?.unwrap_or(10_000.0);
    let rotary = keys.rotary(base, rotary_dims)?;
    let factors = if gguf.has_tensor("rope_freqs.weight") {
        Source::Gguf(gguf.clone()).vector("rope_freqs.weight", rotary_dims / 2)?
    } else {
        Vec::new()
    };
    let global = Rotary { factors, ..rotary };
    let local = match (family.local_base, keys.find("rope.freq_base_swa")?) {
        (None, None) => global.clone(),
        // Scaling stretches the layers that see the whole text only.
        (Some(base), None) | (_, Some(base)) => Rotary::new(base),
    };
    let window = match keys.find("attention.sliding_window")? {
        None if family.name == "gemma2" => Some(4096),
        window => window.filter(|w| *w > 0),
    };
    let vocab_key = gguf.metadata.find::<Array<'_>>("tokenizer.ggml.tokens")?.map(|tokens| tokens.len());
    // The embedding says how many logits there are; the list of tokens can be shorter.
    let vocab = gguf.tensor("token_embd.weight")?.shape.get(1).copied().or(vocab_key).unwrap_or(0);
    let config = Config {
        family,
        layers,
        hidden,
        heads,
        kv_heads: keys.uniform("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        feed_forward: match keys.uniform("feed_forward_length")? {
            Some(n) => n,
            None => return invalid!("{}: {} is missing", gguf.name(), keys.key("feed_forward_length")),
        },
        vocab,
        context: keys.get("context_length")?,
        norm_eps: keys.get("attention.layer_norm_rms_epsilon")?,
        activation: family.activation,
        query_scale: query_scale(family, layers, hidden, heads, head_dim),
        score_cap: keys.find("attn_logit_softcapping")?.filter(|cap| *cap != 0.0),
        logit_cap: keys.find("final_logit_softcapping")?.filter(|cap| *cap != 0.0),
        pairs: family.gguf_pairs,
        rotary_dims,
        global,
        local,
        window,
        half: true,
        local_layers: local_layers(&keys, family, layers, window)?,
        unturned_layers: family.unturned_layers(layers, None),
    };
    config.check(gguf.name())?;
    if config.pairs == Pairs::Neighbours && config.rotary_dims == 0 {
        return invalid!("{}: rope.dimension_count is 0", gguf.name());
    }
    Ok(config)
}

/// The 27B models of Gemma 2 and 3 scale by the width per head instead of the head size; files do not say so.
fn query_scale(family: &Family, layers: usize, hidden: usize, heads: usize, head_dim: usize) -> f32 {
    let wide = matches!((family.name, layers), ("gemma2", 46) | ("gemma3", 62));
    1.0 / (if wide { hidden / heads } else { head_dim } as f32).sqrt()
}

fn local_layers(keys: &Keys<'_>, family: &Family, layers: usize, window: Option<usize>) -> Result<Vec<bool>> {
    if window.is_none() {
        return Ok(vec![false; layers]);
    }
    let key = keys.key("attention.sliding_window_pattern");
    if matches!(keys.gguf.metadata.value(&key), Some(Value::Array(_))) {
        let list: Vec<bool> = keys.gguf.metadata.list(&key)?;
        if list.len() < layers {
            return invalid!("{}: {key} has {} entries for {layers} layers", keys.gguf.name(), list.len());
        }
        return Ok(list[..layers].to_vec());
    }
    Ok(family.local_layers(layers, keys.gguf.metadata.find(&key)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::build::Builder;

    #[test]
    fn nothing_is_made_for_each_of_four_billion_layers() {
        let file = Builder::new().str("general.architecture", "llama").u32("llama.block_count", u32::MAX);
        let error = config(&Arc::new(Gguf::from_bytes(file.bytes()).unwrap())).unwrap_err().to_string();
        assert!(error.contains("llama.block_count is 4294967295, at most 4096 are allowed"), "{error}");
    }
}
