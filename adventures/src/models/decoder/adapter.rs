//! `LoRA` adapters (<https://arxiv.org/abs/2106.09685>) as PEFT saves them: products of two thin matrices, by module.

use super::from_checkpoint::Fields;
use crate::checkpoint::Checkpoint;
use crate::error::{Result, invalid, unsupported};
use crate::kernels::math::accumulate_scaled;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// What an adapter adds to the matrices of a model.
pub(super) struct Adapter {
    files: Checkpoint,
    /// By module, as the checkpoints of causal models name them: `model.layers.0.self_attn.q_proj`.
    pairs: BTreeMap<String, Pair>,
}

/// The two tensors of one module, and what their product is multiplied by.
struct Pair {
    a: String,
    b: String,
    rank: usize,
    scale: f32,
}

/// What is added to one matrix: `scale · b · a`.
pub(super) struct Delta {
    /// `(rank, cols)`.
    a: Vec<f32>,
    /// `(rows, rank)`.
    b: Vec<f32>,
    rank: usize,
    scale: f32,
}

impl Delta {
    /// Adds what belongs to row `index` of the matrix.
    pub(super) fn add(&self, index: usize, row: &mut [f32]) {
        let factors = &self.b[index * self.rank..(index + 1) * self.rank];
        for (factor, a) in factors.iter().zip(self.a.chunks_exact(row.len())) {
            accumulate_scaled(row, a, self.scale * factor);
        }
    }
}

/// What PEFT writes into `adapter_config.json` where the adapter is more, or other, than thin products.
const UNSUPPORTED: [&str; 14] = [
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

/// The ways to start a training that leave the model's own weights as they are.
const STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

impl Adapter {
    /// Opens a directory of `adapter_config.json` and `adapter_model.safetensors`.
    ///
    /// Fails where the adapter is not of `LoRA`'s first form, and names what it is, and where a tensor lacks its other half.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let files = Checkpoint::open_adapter(dir)?;
        let place = format!("{}: adapter_config.json", dir.display());
        let pairs = pairs(&files, Fields { place: &place, object: files.config() })?;
        Ok(Self { files, pairs })
    }

    /// Returns what is added to the matrix of `module`, `rows` rows of `cols` weights; `None` where nothing is.
    ///
    /// Fails where the tensors have other shapes, or hold a number that is not finite.
    pub(super) fn delta(&self, module: &str, (rows, cols): (usize, usize)) -> Result<Option<Delta>> {
        let Some(pair) = self.pairs.get(module) else { return Ok(None) };
        let a = self.files.tensor(&pair.a, &[pair.rank, cols])?;
        let b = self.files.tensor(&pair.b, &[rows, pair.rank])?;
        Ok(Some(Delta { a, b, rank: pair.rank, scale: pair.scale }))
    }

    /// Fails where the adapter changes something else than `modules`.
    pub(super) fn check_all_in(&self, modules: &HashSet<String>) -> Result<()> {
        match self.pairs.iter().find(|(module, _)| !modules.contains(*module)) {
            None => Ok(()),
            Some((module, pair)) => invalid!(
                "{}: tensor {:?} belongs to {module:?}, which this model does not have",
                self.files.dir().display(),
                pair.a
            ),
        }
    }
}

/// Finds the pairs of tensors.
fn pairs(files: &Checkpoint, fields: Fields<'_>) -> Result<BTreeMap<String, Pair>> {
    check_kind(fields)?;
    let dir = files.dir().display();
    let mut halves: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
    for name in files.names() {
        let (module, half) = module(name, files)?;
        if let Some(other) = halves.entry(module).or_default()[half].replace(name.to_owned()) {
            return invalid!("{dir}: tensors {other:?} and {name:?} are of one module");
        }
    }
    if halves.is_empty() {
        return invalid!("{dir}: the adapter has no tensors");
    }
    check_targets(fields, &halves)?;
    let (ranks, alphas) = (Pattern::read(fields, "rank_pattern")?, Pattern::read(fields, "alpha_pattern")?);
    let rank = fields.needed_size("r")?;
    let Some(alpha) = fields.number("lora_alpha")? else {
        return fields.wrong("lora_alpha", "a number");
    };
    let by_root = fields.flag("use_rslora")? == Some(true);
    halves
        .into_iter()
        .map(|(module, pair)| {
            let (a, b) = match pair {
                [Some(a), Some(b)] => (a, b),
                [Some(name), None] | [None, Some(name)] => {
                    return invalid!("{dir}: tensor {name:?} lacks its other half");
                }
                [None, None] => unreachable!("an entry is made for a tensor; this is a bug"),
            };
            let rank = match ranks.find(&module) {
                None => rank,
                Some(value) => value.as_u64().map_or(0, |rank| rank as usize),
            };
            if rank == 0 || rank > 1 << 16 {
                return invalid!("{}: the rank of {module:?} is {rank}", fields.place);
            }
            let alpha = match alphas.find(&module) {
                None => alpha,
                Some(value) => value.as_f64().map_or(f32::NAN, |alpha| alpha as f32),
            };
            // Rank-stabilized LoRA, https://arxiv.org/abs/2312.03732.
            let scale = alpha / if by_root { (rank as f32).sqrt() } else { rank as f32 };
            if !scale.is_finite() {
                return invalid!("{}: the lora_alpha of {module:?} is {alpha}", fields.place);
            }
            Ok((module, Pair { a, b, rank, scale }))
        })
        .collect()
}

/// Fails where the adapter is not made of thin products alone.
fn check_kind(fields: Fields<'_>) -> Result<()> {
    match fields.text("peft_type")? {
        Some("LORA") => {}
        other => {
            return unsupported!("{}: peft_type {:?}; supported is \"LORA\"", fields.place, other.unwrap_or_default());
        }
    }
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    for name in UNSUPPORTED {
        if let Some(value) = fields.find(name).filter(|value| !empty(value)) {
            return unsupported!("{}: {name} is {value}, which is not supported", fields.place);
        }
    }
    if let Some(bias) = fields.text("bias")?.filter(|bias| *bias != "none") {
        return unsupported!("{}: bias {bias:?}; supported is \"none\"", fields.place);
    }
    // PiSSA, OLoRA, LoftQ and the like take out of the model's weights what they put into the adapter at first.
    match fields.find("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(start)) if STARTS.contains(&start.as_str()) => Ok(()),
        Some(other) => unsupported!(
            "{}: init_lora_weights {other}, which changes the model's own weights, is not supported",
            fields.place
        ),
    }
}

/// Fails where a module of `target_modules`, if that is a list, has no tensors.
fn check_targets(fields: Fields<'_>, halves: &BTreeMap<String, [Option<String>; 2]>) -> Result<()> {
    let targets = fields.find("target_modules").and_then(Value::as_array);
    for target in targets.into_iter().flatten() {
        let Some(name) = target.as_str() else {
            return fields.wrong("target_modules", "a string or a list of strings");
        };
        if !halves.keys().any(|module| ends_with(module, name)) {
            return invalid!("{}: no tensor changes {name:?} of target_modules", fields.place);
        }
    }
    Ok(())
}

/// Returns which module a tensor belongs to, and which half of its product it is.
fn module(name: &str, files: &Checkpoint) -> Result<(String, usize)> {
    let parts = name.strip_prefix("base_model.model.").and_then(|rest| {
        [".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight", ".lora_B.default.weight"]
            .iter()
            .position(|end| rest.ends_with(end))
            .and_then(|i| Some((rest.split(".lora_").next()?, i % 2)))
    });
    let Some((module, half)) = parts else {
        return unsupported!(
            "{}: tensor {name:?}; supported are base_model.model.….lora_A.weight and ….lora_B.weight",
            files.dir().display()
        );
    };
    // PEFT over a causal model sees `model.layers`, over the model inside it `layers`.
    let whole = module.starts_with("model.") || module == "lm_head";
    Ok((if whole { module.to_owned() } else { format!("model.{module}") }, half))
}

fn ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// What a pattern of `adapter_config.json` says of some modules.
struct Pattern<'a>(Vec<(&'a str, &'a Value)>);

impl<'a> Pattern<'a> {
    fn read(fields: Fields<'a>, name: &str) -> Result<Self> {
        let Some(value) = fields.find(name) else { return Ok(Self(Vec::new())) };
        let Some(map) = value.as_object() else {
            return fields.wrong(name, "an object");
        };
        for (key, value) in map {
            // PEFT reads regular expressions; names, which most are, mean the same without them.
            if !key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.')) {
                return unsupported!("{}: {name} {key:?}; supported are names of modules", fields.place);
            }
            if !value.is_number() {
                return invalid!("{}: {name} {key:?} must be a number, it is {value}", fields.place);
            }
        }
        Ok(Self(map.iter().map(|(key, value)| (key.as_str(), value)).collect()))
    }

    /// The first that matches, as in PEFT.
    fn find(&self, module: &str) -> Option<&'a Value> {
        self.0.iter().find(|(name, _)| ends_with(module, name)).map(|(_, value)| *value)
    }
}
