//! What the files of sentence-transformers say of a model: its parts, its pooling, its prompts.

use super::Pooling;
use crate::checkpoint::read_json;
use crate::error::{Error, Result, invalid, unsupported};
use serde_json::Value;
use std::path::Path;

/// What sentence-transformers' `modules.json` says.
pub(crate) struct Layout {
    /// The folder of the transformer; empty for the root.
    pub(crate) transformer: String,
    /// Whether a module pools.
    pub(crate) pools: bool,
    pub(super) pooling: Pooling,
    /// The folders of the Dense modules, in their order.
    pub(crate) dense: Vec<String>,
}

impl Layout {
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut layout = Self { transformer: String::new(), pools: false, pooling: Pooling::Mean, dense: Vec::new() };
        let pooling_of = |folder: &str| -> Result<Option<Pooling>> {
            read_json(&root.join(folder).join("config.json"))?
                .map(|config| pooling(&config, &root.join(folder)))
                .transpose()
        };
        let modules = read_json(&root.join("modules.json"))?;
        let Some(modules) = modules.as_ref().and_then(Value::as_array) else {
            layout.pooling = pooling_of("1_Pooling")?.unwrap_or(Pooling::Mean);
            return Ok(layout);
        };
        for module in modules {
            let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
            let (kind, folder) = (text("type"), text("path"));
            if Path::new(folder).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
                return invalid!("{}: modules.json: {folder:?} is not a folder of the model", root.display());
            }
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => folder.clone_into(&mut layout.transformer),
                "Pooling" => {
                    layout.pools = true;
                    layout.pooling = pooling_of(folder)?
                        .ok_or_else(|| Error::NotFound(format!("{}: no {folder}/config.json", root.display())))?;
                }
                "Dense" => layout.dense.push(folder.to_owned()),
                "Normalize" => {}
                _ => {
                    return unsupported!(
                        "{}: module {kind:?}; supported are Transformer, Pooling, Dense and Normalize",
                        root.display()
                    );
                }
            }
        }
        Ok(layout)
    }
}

fn pooling(config: &Value, folder: &Path) -> Result<Pooling> {
    if config.get("include_prompt").and_then(Value::as_bool) == Some(false) {
        return unsupported!("{}: include_prompt=false", folder.display());
    }
    let mut modes: Vec<&str> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode],
        _ => config
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, on)| on.as_bool() == Some(true))
            .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
            .collect(),
    };
    modes.sort_unstable();
    match modes.as_slice() {
        ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["cls" | "cls_token"] => Ok(Pooling::Cls),
        other => unsupported!("{}: pooling {other:?}; supported are mean and cls", folder.display()),
    }
}

/// The prompts of `config_sentence_transformers.json`.
#[derive(Default)]
pub(super) struct Prompts {
    pub(super) query: Option<String>,
    pub(super) passage: Option<String>,
}

impl Prompts {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let Some(config) = read_json(&root.join("config_sentence_transformers.json"))? else {
            return Ok(Self::default());
        };
        let prompt = |name: &str| Some(config.get("prompts")?.get(name)?.as_str()?.to_owned());
        let default = config.get("default_prompt_name").and_then(Value::as_str).and_then(prompt);
        let nonempty = |text: &String| !text.is_empty();
        Ok(Self {
            query: prompt("query").filter(nonempty).or_else(|| default.clone()),
            passage: prompt("passage").filter(nonempty).or_else(|| prompt("document").filter(nonempty)).or(default),
        })
    }
}
