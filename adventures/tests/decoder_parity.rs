//! The decoder on real files, against llama.cpp's greedy text (`tools/goldens_llama.py`).

use adventures::gguf::Gguf;
use adventures::models::decoder::{DecoderOptions, from_gguf};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Below this, two logits are a tie: the order of additions alone moves them by more.
const TIE: f64 = 1e-2;

fn goldens(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The model's file in the cache, `None` where it has not been pulled.
fn file(golden: &Value) -> Option<PathBuf> {
    let cache = std::env::var_os("ADVENTURES_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/adventures")))?;
    let name = golden["model"].as_str().expect("a name");
    let path = cache.join("models").join(name).join(golden["file"].as_str().expect("a file"));
    if path.is_file() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent; `adventures models pull {name}` fetches it", path.display());
    None
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn best(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a))).expect("a vocabulary")
}

fn follows_llama_cpp(name: &str) {
    let golden = goldens(&format!("llama-{name}.json"));
    let Some(path) = file(&golden) else { return };
    let gguf = Arc::new(Gguf::open(path).expect("the file opens"));
    let lm = from_gguf(gguf, &DecoderOptions::default()).expect("the model loads");
    let (mut ties, mut furthest) = (0, 0.0_f64);
    for prompt in golden["prompts"].as_array().expect("prompts") {
        let title = prompt["title"].as_str().expect("a title");
        let mut run = lm.start();
        let mut next = ids(&prompt["ids"]);
        for (i, step) in prompt["steps"].as_array().expect("steps").iter().enumerate() {
            let logits: Vec<f32> = run.read(&next).expect("it reads").to_vec1().expect("f32");
            let theirs = ids(&step["ids"]);
            let gap = step["logits"][0].as_f64().expect("a logit") - step["logits"][1].as_f64().expect("a logit");
            for (id, logit) in theirs.iter().zip(step["logits"].as_array().expect("logits")) {
                furthest = furthest.max((f64::from(logits[*id as usize]) - logit.as_f64().expect("a logit")).abs());
            }
            let ours = best(&logits);
            if ours != theirs[0] as usize {
                assert!(
                    ours == theirs[1] as usize && gap <= TIE,
                    "{name} {title} step {i}: token {ours}, llama.cpp has {theirs:?} with a gap of {gap}"
                );
                eprintln!("{name} {title}: a tie at step {i}, {theirs:?} differ by {gap}");
                ties += 1;
                break;
            }
            next = vec![ours as u32];
        }
    }
    eprintln!("{name}: {ties} ties, logits within {furthest:.4} of llama.cpp's");
}

#[test]
fn smollm2_follows_llama_cpp() {
    follows_llama_cpp("smollm2-135m-instruct");
}

#[test]
fn gemma_3_follows_llama_cpp() {
    follows_llama_cpp("gemma-3-270m");
}
