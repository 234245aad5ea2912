//! The configuration of a checkpoint of transformers.

use super::config::{Activation, Config, Family, MAX_LAYERS, Pairs, Rotary};
use super::rope::Yarn;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, invalid, unsupported};
use serde_json::Value;

/// Reads fields of `config.json` or of an object inside it; `null` counts as absent, as in transformers.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) place: &'a str,
    pub(super) object: &'a Value,
}

impl<'a> Fields<'a> {
    pub(super) fn find(self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn wrong<T>(self, name: &str, expected: &str) -> Result<T> {
        let found = self.find(name).map_or_else(|| "missing".to_owned(), ToString::to_string);
        invalid!("{}: {name:?} must be {expected}, it is {found}", self.place)
    }

    pub(super) fn size(self, name: &str) -> Result<Option<usize>> {
        match self.find(name) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => self.wrong(name, "a whole number"),
            },
        }
    }

    pub(super) fn needed_size(self, name: &str) -> Result<usize> {
        match self.size(name)? {
            Some(n) => Ok(n),
            None => self.wrong(name, "a whole number"),
        }
    }

    pub(super) fn number(self, name: &str) -> Result<Option<f32>> {
        match self.find(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) => Ok(Some(x as f32)),
                None => self.wrong(name, "a number"),
            },
        }
    }

    pub(super) fn text(self, name: &str) -> Result<Option<&'a str>> {
        match self.find(name) {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) => Ok(Some(text)),
                None => self.wrong(name, "a string"),
            },
        }
    }

    pub(super) fn flag(self, name: &str) -> Result<Option<bool>> {
        match self.find(name) {
            None => Ok(None),
            Some(value) => match value.as_bool() {
                Some(flag) => Ok(Some(flag)),
                None => self.wrong(name, "true or false"),
            },
        }
    }

    fn inside(self, name: &str) -> Option<Self> {
        self.find(name).map(|object| Self { object, ..self })
    }
}

/// Returns the configuration of `checkpoint`, and whether its embedding serves as its head.
pub(super) fn config(checkpoint: &Checkpoint) -> Result<(Config, bool)> {
    let place = format!("{}: config.json", checkpoint.dir().display());
    let fields = Fields { place: &place, object: checkpoint.config() };
    let Some(model_type) = fields.text("model_type")? else {
        return fields.wrong("model_type", "a string");
    };
    let family = Family::find(model_type)?;
    let gemma = family.scaled_embeddings;
    let layers = fields.needed_size("num_hidden_layers")?;
    if layers > MAX_LAYERS {
        return invalid!("{}: num_hidden_layers is {layers}, at most {MAX_LAYERS} are allowed", fields.place);
    }
    let hidden = fields.needed_size("hidden_size")?;
    let heads = fields.needed_size("num_attention_heads")?;
    if heads == 0 {
        return fields.wrong("num_attention_heads", "at least 1");
    }
    let head_dim = fields.size("head_dim")?.unwrap_or(if gemma { 256 } else { hidden / heads });
    let (global, local) = rotaries(fields, family, head_dim)?;
    let window = window(fields, family)?;
    let config = Config {
        family,
        layers,
        hidden,
        heads,
        kv_heads: fields.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        feed_forward: fields.needed_size("intermediate_size")?,
        vocab: fields.needed_size("vocab_size")?,
        context: fields.needed_size("max_position_embeddings")?,
        norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
        activation: activation(fields, family)?,
        query_scale: fields.number("query_pre_attn_scalar")?.unwrap_or(head_dim as f32).sqrt().recip(),
        score_cap: fields.number("attn_logit_softcapping")?,
        logit_cap: fields.number("final_logit_softcapping")?,
        pairs: Pairs::Halves,
        rotary_dims: head_dim,
        global,
        local,
        window,
        half: false,
        local_layers: local_layers(fields, family, layers, window)?,
        unturned_layers: unturned_layers(fields, family, layers)?,
    };
    config.check(&place)?;
    if fields.flag("use_bidirectional_attention")? == Some(true) {
        return unsupported!("{place}: \"use_bidirectional_attention\"");
    }
    Ok((config, fields.flag("tie_word_embeddings")?.unwrap_or(gemma || family.name == "smollm3")))
}

/// The first Gemma checkpoints say "gelu" but were trained with its tanh approximation; `hidden_activation` was added to
/// say so, and absence of it means the same.
fn activation(fields: Fields<'_>, family: &Family) -> Result<Activation> {
    let gemma = family.scaled_embeddings;
    let name = if gemma { "hidden_activation" } else { "hidden_act" };
    match fields.text(name)? {
        None => Ok(family.activation),
        Some("silu") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some("gelu") => Ok(Activation::GeluErf),
        Some(other) => {
            unsupported!("{}: {name} {other:?}; supported are silu, gelu and gelu_pytorch_tanh", fields.place)
        }
    }
}

fn window(fields: Fields<'_>, family: &Family) -> Result<Option<usize>> {
    let window = fields.size("sliding_window")?;
    Ok(match family.name {
        "llama" | "gemma" => None,
        "qwen2" | "qwen3" | "smollm3" if fields.flag("use_sliding_window")? != Some(true) => None,
        "gemma2" => window.or(Some(4096)),
        _ => window,
    })
}

fn local_layers(fields: Fields<'_>, family: &Family, layers: usize, window: Option<usize>) -> Result<Vec<bool>> {
    if window.is_none() {
        return Ok(vec![false; layers]);
    }
    if let Some(types) = fields.find("layer_types") {
        let Some(types) = types.as_array().filter(|types| types.len() == layers) else {
            return fields.wrong("layer_types", &format!("a list of {layers} strings"));
        };
        return types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => unsupported!(
                    "{}: layer type {kind}; supported are \"full_attention\" and \"sliding_attention\"",
                    fields.place
                ),
            })
            .collect();
    }
    if family.name.starts_with("qwen") {
        let from = fields.size("max_window_layers")?.unwrap_or(0);
        return Ok((0..layers).map(|i| i >= from).collect());
    }
    Ok(family.local_layers(layers, fields.size("sliding_window_pattern")?))
}

/// `no_rope_layers` has a 1 for each layer *with* rotary positions.
fn unturned_layers(fields: Fields<'_>, family: &Family, layers: usize) -> Result<Vec<bool>> {
    let every = fields.size("no_rope_layer_interval")?;
    if family.unturned_every.is_none() {
        return Ok(vec![false; layers]);
    }
    let Some(list) = fields.find("no_rope_layers") else { return Ok(family.unturned_layers(layers, every)) };
    let turned = list.as_array().filter(|list| list.len() >= layers);
    let turned: Option<Vec<u64>> = turned.and_then(|list| list[..layers].iter().map(Value::as_u64).collect());
    match turned {
        Some(turned) if turned.iter().all(|turned| *turned <= 1) => {
            Ok(turned.iter().map(|turned| *turned == 0).collect())
        }
        _ => fields.wrong("no_rope_layers", &format!("a list of {layers} times 0 or 1")),
    }
}

/// The positions of layers that see everything, and of layers with a window.
fn rotaries(fields: Fields<'_>, family: &Family, head_dim: usize) -> Result<(Rotary, Rotary)> {
    let context = fields.needed_size("max_position_embeddings")?;
    let parameters = fields.inside("rope_parameters");
    // transformers 5 nests the two kinds of layer; before it, everything lay flat.
    if let Some(parameters) = parameters
        && let Some(global) = parameters.inside("full_attention")
    {
        let global = rotary(global.number("rope_theta")?, Some(global), head_dim, context)?;
        let local = match parameters.inside("sliding_attention") {
            Some(local) => rotary(local.number("rope_theta")?.or(family.local_base), Some(local), head_dim, context)?,
            None => global.clone(),
        };
        return Ok((global, local));
    }
    let base = match parameters {
        Some(parameters) => parameters.number("rope_theta")?,
        None => None,
    };
    let base = base.or(fields.number("rope_theta")?);
    let default = match family.name {
        "smollm3" => Some(2_000_000.0),
        _ => family.local_base.map(|_| 1_000_000.0), // Gemma 3
    };
    let scaling = parameters.or_else(|| fields.inside("rope_scaling"));
    let global = rotary(base.or(default), scaling, head_dim, context)?;
    let local = match fields.number("rope_local_base_freq")?.or(family.local_base) {
        Some(base) => rotary(Some(base), None, head_dim, context)?,
        None => global.clone(),
    };
    Ok((global, local))
}

/// `context` is the model's, stretched.
fn yarn(scaling: Fields<'_>, context: usize) -> Result<Yarn> {
    let original = scaling.number("original_max_position_embeddings")?.unwrap_or(context as f32);
    let factor = scaling.number("factor")?.unwrap_or(context as f32 / original);
    let number = |name| Ok::<_, Error>(scaling.number(name)?.filter(|x| *x != 0.0));
    let magnitude = match (scaling.number("attention_factor")?, number("mscale")?, number("mscale_all_dim")?) {
        (Some(factor), ..) => factor,
        (None, Some(share), Some(all)) => Yarn::sharpness(factor, share) / Yarn::sharpness(factor, all),
        (None, ..) => Yarn::sharpness(factor, 1.0),
    };
    Ok(Yarn {
        factor,
        original,
        fast: number("beta_fast")?.unwrap_or(Yarn::FAST),
        slow: number("beta_slow")?.unwrap_or(Yarn::SLOW),
        truncate: scaling.flag("truncate")?.unwrap_or(true),
        magnitude,
    })
}

fn rotary(base: Option<f32>, scaling: Option<Fields<'_>>, head_dim: usize, context: usize) -> Result<Rotary> {
    let mut rotary = Rotary::new(base.unwrap_or(10_000.0));
    let Some(scaling) = scaling else { return Ok(rotary) };
    let kind = match scaling.text("rope_type")? {
        Some(kind) => kind,
        None => scaling.text("type")?.unwrap_or("default"),
    };
    let needed = |name: &str| -> Result<f32> {
        scaling
            .number(name)?
            .ok_or_else(|| Error::Invalid(format!("{}: {name:?} of rope scaling {kind:?} is missing", scaling.place)))
    };
    match kind {
        "default" => {}
        "linear" => rotary.factor = needed("factor")?,
        "llama3" => {
            let factor = needed("factor")?;
            let (low, high) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
            let original = needed("original_max_position_embeddings")?;
            // Llama 3.1: long waves are stretched, short ones left, those between blended.
            let stretch = |i: usize| {
                let wave = std::f32::consts::TAU * rotary.base.powf((2 * i) as f32 / head_dim as f32);
                if wave < original / high {
                    1.0
                } else if wave > original / low {
                    factor
                } else {
                    let smooth = (original / wave - low) / (high - low);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            };
            rotary.factors = (0..head_dim / 2).map(stretch).collect();
        }
        "yarn" => rotary = yarn(scaling, context)?.rotary(rotary.base, head_dim),
        other => {
            return unsupported!(
                "{}: rope scaling {other:?}; supported are \"default\", \"linear\", \"llama3\" and \"yarn\"",
                scaling.place
            );
        }
    }
    Ok(rotary)
}
