//! The small random checkpoints with goldens of transformers (`tools/goldens_decoder.py`).

use adventures::checkpoint::Checkpoint;
use adventures::models::decoder::{DecoderOptions, from_checkpoint};
use adventures::models::{CausalLm, Run};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) const NAMES: [&str; 9] = [
    "tiny-gemma",
    "tiny-gemma2",
    "tiny-gemma3_text",
    "tiny-llama",
    "tiny-mistral",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-smollm3",
    "tiny-yarn",
];

pub(crate) fn goldens() -> PathBuf {
    // Asked for at run time: what is built on one machine runs on another that has a card.
    let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join("../tests/goldens")
}

pub(crate) fn golden(name: &str) -> Value {
    let path = goldens().join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("the file is JSON")
}

pub(crate) fn checkpoint(name: &str) -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(goldens().join(name)).expect("the checkpoint opens"))
}

pub(crate) fn load(name: &str, options: &DecoderOptions) -> Arc<dyn CausalLm> {
    from_checkpoint(checkpoint(name), options).expect("the model loads")
}

pub(crate) fn read(run: &mut dyn Run, ids: &[u32]) -> Vec<f32> {
    run.read(ids).expect("it reads").to_vec1().expect("f32")
}

/// A text of the tiny vocabularies.
pub(crate) fn text(length: usize, seed: u32) -> Vec<u32> {
    (0..length as u32).map(|i| (i * i * 5 + i * 11 + seed * 7) % 40).collect()
}

pub(crate) fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

pub(crate) fn assert_near(got: &[f32], want: &[f32], most: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= most, "{what}, number {i}: {got}, want {want}");
    }
}

/// Reads the golden's text in pieces of several lengths; each piece's last logits are compared. The windows are shorter than it.
pub(crate) fn follows(name: &str, lm: &dyn CausalLm) {
    let golden = golden(name);
    let (ids, want) = (ids(&golden["ids"]), golden["logits"].as_array().expect("a row per token"));
    assert_eq!(ids.len(), want.len());
    for piece in [1, 2, 7, ids.len()] {
        let mut run = lm.start();
        for part in ids.chunks(piece) {
            let logits = read(run.as_mut(), part);
            assert_near(&logits, &numbers(&want[run.len() - 1]), 1e-4, &format!("{name}, position {}", run.len()));
        }
    }
}
