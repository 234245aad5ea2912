//! The decoder on real files, against llama.cpp's greedy text (`tools/goldens_llama.py`).

mod common;

use adventures::gguf::Gguf;
use adventures::models::decoder::{DecoderOptions, from_gguf};
use adventures::models::{Run, Step};
use common::file;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// Below this, two logits are a tie: the order of additions alone moves them by more.
const TIE: f64 = 1e-2;

fn goldens(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
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

/// Reads a long prompt in every way there is, and several runs together: bits may not tell.
fn is_the_same_in_every_way(name: &str) {
    let golden = goldens(&format!("llama-{name}.json"));
    let Some(path) = file(&golden) else { return };
    let gguf = Arc::new(Gguf::open(path).expect("the file opens"));
    let lm = from_gguf(gguf, &DecoderOptions::default()).expect("the model loads");
    let texts: Vec<Vec<u32>> =
        golden["prompts"].as_array().expect("prompts").iter().map(|prompt| ids(&prompt["ids"])).collect();
    let prompt: Vec<u32> = texts.iter().flatten().copied().cycle().take(203).collect();
    let read =
        |run: &mut dyn Run, ids: &[u32]| -> Vec<f32> { run.read(ids).expect("it reads").to_vec1().expect("f32") };
    let mut whole = lm.start();
    let want = read(whole.as_mut(), &prompt);
    for pieces in [vec![128], vec![64, 64], vec![8, 52, 100], vec![192]] {
        let mut run = lm.start();
        let mut start = 0;
        for piece in pieces {
            read(run.as_mut(), &prompt[start..start + piece]);
            start += piece;
        }
        assert!(read(run.as_mut(), &prompt[start..]) == want, "{name}: pieces");
    }
    assert!(lm.resume(&prompt).is_empty());
    lm.keep(whole.as_mut(), &prompt);
    for (length, kept) in [(203, 192), (199, 128), (150, 128), (64, 0)] {
        let mut resumed = lm.resume(&prompt[..length]);
        assert_eq!(resumed.len(), kept);
        let rest = read(resumed.as_mut(), &prompt[kept..length]);
        assert!(rest == read(lm.start().as_mut(), &prompt[..length]), "{name}: {length} tokens, {kept} kept");
        // Writing over what is shared leaves it to the others as it was.
        resumed.rewind(kept.saturating_sub(30)).expect("it rewinds");
        read(resumed.as_mut(), &texts[0]);
    }
    assert!(read(lm.resume(&prompt).as_mut(), &prompt[192..]) == want, "{name}: after writing over shared pages");
    // Several together, one of which reads several tokens.
    let mut runs: Vec<_> = texts.iter().map(|_| (lm.start(), lm.start())).collect();
    for ((run, alone), ids) in runs.iter_mut().zip(&texts) {
        read(run.as_mut(), ids);
        read(alone.as_mut(), ids);
    }
    for round in 0..3 {
        for together in 1..=runs.len() {
            let ids: Vec<Vec<u32>> = (0..together).map(|i| texts[0][round..=round + i % 3].to_vec()).collect();
            let steps = runs.iter_mut().zip(&ids);
            let mut steps: Vec<_> = steps.map(|((run, _), ids)| Step { run: run.as_mut(), ids }).collect();
            let rows = lm.step(&mut steps);
            for (((_, alone), ids), rows) in runs.iter_mut().zip(&ids).zip(rows) {
                let rows = rows.expect("it reads");
                for (row, id) in rows.iter().zip(ids) {
                    assert!(*row == read(alone.as_mut(), &[*id]), "{name}: {together} together");
                }
            }
        }
    }
}

#[test]
fn smollm2_is_the_same_in_every_way() {
    is_the_same_in_every_way("smollm2-135m-instruct");
}

#[test]
fn gemma_3_is_the_same_in_every_way() {
    is_the_same_in_every_way("gemma-3-270m");
}

#[test]
fn a_window_forgets_what_it_has_left_and_nothing_else() {
    let golden = goldens("llama-gemma-3-270m.json");
    let Some(path) = file(&golden) else { return };
    let gguf = Arc::new(Gguf::open(path).expect("the file opens"));
    let lm = from_gguf(gguf, &DecoderOptions::default()).expect("the model loads");
    let words = ids(&golden["prompts"][0]["ids"]);
    let prompt: Vec<u32> = words.iter().copied().cycle().take(780).collect();
    let read =
        |run: &mut dyn Run, ids: &[u32]| -> Vec<f32> { run.read(ids).expect("it reads").to_vec1().expect("f32") };
    let (mut whole, mut pieces) = (lm.start(), lm.start());
    let want = read(whole.as_mut(), &prompt);
    let mut last = Vec::new();
    for piece in prompt.chunks(260) {
        last = read(pieces.as_mut(), piece);
        let len = pieces.len();
        lm.keep(pieces.as_mut(), &prompt[..len]);
    }
    assert!(last == want);
    // The window is of 512, and a page more is kept: the first three pages are left behind.
    assert!(pieces.rewind(780 - 64).is_ok() && read(pieces.as_mut(), &prompt[716..]) == want);
    let error = pieces.rewind(500).expect_err("it is forgotten").to_string();
    assert!(error.contains("cannot rewind to 500 of 780 tokens"), "{error}");
    assert_eq!(pieces.len(), 780);
    let next = words[1];
    assert!(read(pieces.as_mut(), &[next]) == read(whole.as_mut(), &[next]));
    // What was kept before it was left behind serves any beginning.
    for length in [780, 300] {
        let mut resumed = lm.resume(&prompt[..length]);
        assert_eq!(resumed.len(), (length - 8) / 64 * 64);
        let rest = resumed.len();
        assert!(read(resumed.as_mut(), &prompt[rest..length]) == read(lm.start().as_mut(), &prompt[..length]));
    }
}
