//! The decoder on small random checkpoints, against the logits of transformers (`tools/goldens_decoder.py`).

use adventures::checkpoint::Checkpoint;
use adventures::models::decoder::{DecoderOptions, from_checkpoint};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// Reads the text in each of `pieces` at a time; each piece's last logits are compared.
fn follows_transformers(name: &str) {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
    let path = goldens.join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let golden: Value = serde_json::from_str(&text).expect("the file is JSON");
    let checkpoint = Arc::new(Checkpoint::open(goldens.join(name)).expect("the checkpoint opens"));
    let lm = from_checkpoint(checkpoint, &DecoderOptions::default()).expect("the model loads");
    let ids: Vec<u32> = numbers(&golden["ids"]).iter().map(|id| *id as u32).collect();
    let want = golden["logits"].as_array().expect("a row per token");
    assert_eq!(ids.len(), want.len());
    for piece in [1, 2, 7, ids.len()] {
        let mut run = lm.start();
        for part in ids.chunks(piece) {
            let logits: Vec<f32> = run.read(part).expect("it reads").to_vec1().expect("f32");
            let want = numbers(&want[run.len() - 1]);
            assert_eq!(logits.len(), want.len());
            for (i, (got, want)) in logits.iter().zip(want).enumerate() {
                let difference = (f64::from(*got) - want).abs();
                assert!(difference <= 1e-4, "{name}, position {}, token {i}: {got}, want {want}", run.len());
            }
        }
    }
}

#[test]
fn gemma_follows_transformers() {
    follows_transformers("tiny-gemma");
}

#[test]
fn llama_follows_transformers() {
    follows_transformers("tiny-llama");
}

#[test]
fn mistral_follows_transformers() {
    follows_transformers("tiny-mistral");
}

#[test]
fn gemma2_follows_transformers() {
    follows_transformers("tiny-gemma2");
}

#[test]
fn gemma3_text_follows_transformers() {
    follows_transformers("tiny-gemma3_text");
}

#[test]
fn qwen2_follows_transformers() {
    follows_transformers("tiny-qwen2");
}

#[test]
fn qwen3_follows_transformers() {
    follows_transformers("tiny-qwen3");
}
