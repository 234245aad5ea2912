//! How well the decoder predicts a text, against llama.cpp on the same file (`tools/goldens_perplexity.py`).

mod common;

use adventures::gguf::Gguf;
use adventures::models::decoder::{DecoderOptions, from_gguf};
use common::file;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Of one perplexity to the other.
const CLOSE: f64 = 0.005;

/// -log p of `id`.
fn surprise(logits: &[f32], id: u32) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - top).exp()).sum();
    f64::from(top) + sum.ln() - f64::from(logits[id as usize])
}

/// Reads each window token by token.
fn predicts_as_llama_cpp(folder: &Path, name: &str) {
    let path = folder.join(format!("perplexity-{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let golden: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let Some(path) = file(&golden) else { return };
    let gguf = Arc::new(Gguf::open(path).expect("the file opens"));
    let lm = from_gguf(gguf, &DecoderOptions::default()).expect("the model loads");
    let (mut ours, mut theirs, mut count) = (0.0, 0.0, 0);
    for window in golden["windows"].as_array().expect("windows") {
        let ids: Vec<u32> =
            window["ids"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect();
        let mut run = lm.start();
        for pair in ids.windows(2) {
            let logits: Vec<f32> = run.read(&pair[..1]).expect("it reads").to_vec1().expect("f32");
            ours += surprise(&logits, pair[1]);
        }
        theirs += window["surprise"].as_f64().expect("a number");
        count += ids.len() - 1;
    }
    let [ours, theirs] = [ours, theirs].map(|sum: f64| (sum / count as f64).exp());
    let ratio = ours / theirs;
    eprintln!("{name}: perplexity {ours:.4} over {count} tokens, llama.cpp {theirs:.4}, ratio {ratio:.5}");
    assert!((ratio - 1.0).abs() <= CLOSE, "{name}: perplexity {ours}, llama.cpp {theirs}");
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens")
}

#[test]
fn smollm2_predicts_as_llama_cpp() {
    predicts_as_llama_cpp(&goldens(), "smollm2-135m-instruct");
}

#[test]
fn gemma_3_predicts_as_llama_cpp() {
    predicts_as_llama_cpp(&goldens(), "gemma-3-270m");
}

/// Of as long a text as `PERPLEXITY`, a folder, has references for.
#[test]
#[ignore = "minutes; `make perplexity` runs it"]
fn long_texts_are_predicted_as_by_llama_cpp() {
    let folder = PathBuf::from(std::env::var_os("PERPLEXITY").expect("PERPLEXITY names a folder"));
    for name in ["smollm2-135m-instruct", "gemma-3-270m"] {
        predicts_as_llama_cpp(&folder, name);
    }
}
