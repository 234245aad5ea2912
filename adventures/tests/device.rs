//! The models on candle's tensors, as they run on an accelerator: on the device that `ADVENTURES_TEST_DEVICE` names, candle's
//! own CPU device by default, against the goldens and the kernels of this crate.

mod common;
mod tiny;

use adventures::checkpoint::Checkpoint;
use adventures::gguf::Gguf;
use adventures::models::decoder::{DecoderOptions, Quantize, bidirectional, from_checkpoint, from_gguf};
use adventures::models::{Batch, Step};
use candle_core::Device;
use common::file;
use serde_json::Value;
use std::sync::Arc;
use tiny::{NAMES, assert_near, checkpoint, follows, golden, goldens, ids, load, numbers, read, text};

/// Two logits that are nearer than this may change places: candle rounds activations in other blocks than llama.cpp, which moves
/// logits of `SmolLM2` by some tenths.
const TIE: f64 = 0.25;
/// Tokens of an answer: candle's plain products of `Q4_1` and `Q5_0` on the CPU take their time.
const STEPS: usize = 20;

fn device() -> Device {
    let name = std::env::var("ADVENTURES_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    adventures::device(&name).expect("the device is there")
}

fn on_device() -> DecoderOptions {
    DecoderOptions { device: Some(device()), ..DecoderOptions::default() }
}

/// The length of the difference, as a share of the length of `want`.
fn difference(got: &[f32], want: &[f32]) -> f32 {
    let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    length(&mut got.iter().zip(want).map(|(a, b)| a - b)) / length(&mut want.iter().copied())
}

#[test]
fn every_family_follows_transformers() {
    for name in NAMES {
        follows(name, load(name, &on_device()).as_ref());
    }
}

#[test]
fn an_adapter_follows_peft() {
    let adapters = vec![goldens().join("tiny-llm2vec/causal")];
    follows("tiny-llm2vec", load("tiny-llm2vec/base", &DecoderOptions { adapters, ..on_device() }).as_ref());
}

#[test]
fn every_family_encodes_without_the_mask() {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread starts"));
    for name in NAMES.iter().filter(|name| **name != "tiny-gemma") {
        let golden = golden(name);
        let ids = ids(&golden["ids"]);
        let encoder = bidirectional(checkpoint(name), &on_device(), pool.clone()).expect("the model loads");
        let encode = |ids: Vec<u32>, lengths: Vec<usize>| -> Vec<Vec<f32>> {
            encoder.encode(&Batch { ids, lengths, ..Batch::default() }).expect("it encodes").to_vec2().expect("f32")
        };
        let several = encode([&ids[5..12], &ids[..], &ids[..1]].concat(), vec![7, ids.len(), 1]);
        for (t, want) in golden["bidirectional"].as_array().expect("a row per token").iter().enumerate() {
            assert_near(&several[7 + t], &numbers(want), 1e-4, &format!("{name}, position {t}"));
        }
        assert!(encode(Vec::new(), Vec::new()).is_empty());
        for (ids, lengths, message) in [
            (vec![3, 40], vec![2], "token 40 is outside of the vocabulary of 40"),
            (vec![1; 65], vec![65], "65 tokens do not fit the context of 64"),
            (vec![1; 3], vec![1], "lengths [1] of 3 tokens"),
        ] {
            let error = encoder.encode(&Batch { ids, lengths, ..Batch::default() }).expect_err("it is refused");
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}

/// The kernels of both round activations to bytes; candle's in blocks of 256 where weights are of type K.
#[test]
fn quantized_logits_are_those_of_the_kernels() {
    for name in ["tiny-gemma", "tiny-llm2vec/base"] {
        for quantize in [Quantize::Q8_0, Quantize::Q4K] {
            let options = DecoderOptions { quantize: Some(quantize), ..DecoderOptions::default() };
            let want = read(load(name, &options).start().as_mut(), &text(20, 5));
            let got =
                read(load(name, &DecoderOptions { device: Some(device()), ..options }).start().as_mut(), &text(20, 5));
            let difference = difference(&got, &want);
            assert!(difference < 0.05, "{name}, {}: {difference}", quantize.name());
        }
    }
}

/// Beyond what a cache first has room for and what is read at once, in layers with a window and without.
#[test]
fn long_texts_are_read_as_on_the_cpu() {
    for name in ["tiny-gemma3_text", "tiny-mistral", "tiny-llama"] {
        let dir = std::env::temp_dir().join(format!("adventures-device-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let config = std::fs::read_to_string(goldens().join(name).join("config.json")).expect("a configuration");
        let mut config: Value = serde_json::from_str(&config).expect("JSON");
        config["max_position_embeddings"] = 2000.into();
        std::fs::write(dir.join("config.json"), config.to_string()).expect("it is written");
        let weights = goldens().join(name).join("model.safetensors");
        std::fs::copy(weights, dir.join("model.safetensors")).expect("it is copied");
        let open = |options: &DecoderOptions| {
            from_checkpoint(Arc::new(Checkpoint::open(&dir).expect("it opens")), options).expect("it loads")
        };
        let (ours, theirs) = (open(&DecoderOptions::default()), open(&on_device()));
        let ids = text(1300, 3);
        let want = read(ours.start().as_mut(), &ids);
        let mut whole = theirs.start();
        assert_near(&read(whole.as_mut(), &ids), &want, 1e-4, name);
        for piece in [600, 257] {
            let mut pieces = theirs.start();
            let last = ids.chunks(piece).map(|part| read(pieces.as_mut(), part)).last().expect("a piece");
            assert_near(&last, &want, 1e-4, &format!("{name} in pieces of {piece}"));
        }
        whole.rewind(300).expect("it rewinds, however far");
        assert_near(&read(whole.as_mut(), &ids[300..]), &want, 1e-4, &format!("{name}, rewound"));
        std::fs::remove_dir_all(&dir).expect("it is removed");
    }
}

#[test]
fn a_rewound_run_is_as_a_fresh_one() {
    for name in NAMES {
        let lm = load(name, &on_device());
        let (beginning, wrong, right) = (text(9, 1), text(20, 2), text(17, 3));
        let mut run = lm.start();
        read(run.as_mut(), &beginning);
        read(run.as_mut(), &wrong);
        run.rewind(beginning.len()).expect("it rewinds");
        let mut fresh = lm.start();
        read(fresh.as_mut(), &beginning);
        assert_eq!(read(run.as_mut(), &right), read(fresh.as_mut(), &right), "{name}");
        assert!(run.rewind(27).is_err(), "only 26 tokens have been read");
    }
}

#[test]
fn a_step_of_many_runs_is_each_alone() {
    for name in NAMES {
        let lm = load(name, &on_device());
        let lengths = [1, 9, 20, 3, 14];
        let mut runs: Vec<_> = (0..5).map(|_| (lm.start(), lm.start())).collect();
        for (i, (run, alone)) in runs.iter_mut().enumerate() {
            read(run.as_mut(), &text(lengths[i], i as u32));
            read(alone.as_mut(), &text(lengths[i], i as u32));
        }
        for round in 0..6 {
            // Some read several tokens, some fail, some have nothing to do.
            let ids: Vec<Vec<u32>> = (0..5).map(|i| text((i + round) % 4, 9 + i as u32)).collect();
            let steps = runs.iter_mut().zip(&ids);
            let mut steps: Vec<_> = steps.map(|((run, _), ids)| Step { run: run.as_mut(), ids }).collect();
            let rows = lm.step(&mut steps);
            for (((run, alone), ids), rows) in runs.iter_mut().zip(&ids).zip(rows) {
                assert_eq!(rows.is_err(), ids.is_empty(), "{name}");
                for (i, id) in ids.iter().enumerate() {
                    let row = &rows.as_ref().expect("it reads")[i];
                    assert_near(row, &read(alone.as_mut(), &[*id]), 1e-4, name);
                }
                assert_eq!(run.len(), alone.len());
            }
        }
    }
}

#[test]
fn the_best_of_a_step_are_those_of_its_logits() {
    for name in ["tiny-gemma2", "tiny-qwen3"] {
        let lm = load(name, &on_device());
        assert!(
            load(name, &DecoderOptions::default()).step_best(&mut [], 40).is_none(),
            "logits are no work on the CPU"
        );
        let mut runs: Vec<_> = (0..3).map(|_| (lm.start(), lm.start())).collect();
        for (i, (run, alone)) in runs.iter_mut().enumerate() {
            read(run.as_mut(), &text(5 + i, i as u32));
            read(alone.as_mut(), &text(5 + i, i as u32));
        }
        // Of all tokens, and of the first few.
        for vocab in [40, 7] {
            let ids = [text(1, 4), text(3, 5), vec![]];
            let mut steps: Vec<_> =
                runs.iter_mut().zip(&ids).map(|((run, _), ids)| Step { run: run.as_mut(), ids }).collect();
            let best = lm.step_best(&mut steps, vocab).expect("the device chooses");
            let mut steps: Vec<_> =
                runs.iter_mut().zip(&ids).map(|((_, alone), ids)| Step { run: alone.as_mut(), ids }).collect();
            let rows = lm.step(&mut steps);
            for (best, rows) in best.into_iter().zip(rows) {
                let Ok(best) = best else {
                    assert!(rows.is_err());
                    continue;
                };
                let highest =
                    |row: &Vec<f32>| (0..vocab).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("a token") as u32;
                assert_eq!(best, rows.expect("it reads").iter().map(highest).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let lm = load("tiny-mistral", &on_device());
    let (mut run, mut other) = (lm.start(), lm.start());
    assert_eq!((lm.context(), lm.vocab_size()), (64, 40));
    read(run.as_mut(), &text(60, 1));
    read(other.as_mut(), &text(60, 1));
    for (ids, message) in [
        (vec![], "no tokens"),
        (vec![3, 40], "token 40 is outside of the vocabulary of 40"),
        (vec![1; 5], "5 tokens after 60 do not fit the context of 64"),
    ] {
        let error = run.read(&ids).expect_err("it is refused").to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!(run.len(), 60);
    }
    assert_eq!(read(run.as_mut(), &[1, 2, 3, 4]), read(other.as_mut(), &[1, 2, 3, 4]));
    // A run of the kernels is none of a device's, and the other way round.
    let cpu = load("tiny-mistral", &DecoderOptions::default());
    let (mut one, mut two) = (lm.start(), cpu.start());
    let rows = lm.step(&mut [Step { run: two.as_mut(), ids: &[1] }]);
    assert!(rows[0].as_ref().expect_err("it is refused").to_string().contains("another model"));
    let rows = cpu.step(&mut [Step { run: one.as_mut(), ids: &[1] }]);
    assert!(rows[0].as_ref().expect_err("it is refused").to_string().contains("another model"));
    let options = DecoderOptions { context: Some(65), ..on_device() };
    let error = from_checkpoint(checkpoint("tiny-mistral"), &options).err().expect("it is refused").to_string();
    assert!(error.contains("context=65: the model was made for 64 positions"), "{error}");
}

/// Real files: the greedy text is llama.cpp's, or differs first where two logits are near.
fn follows_llama_cpp(name: &str, prompts: usize) {
    let golden = golden(&format!("llama-{name}"));
    let Some(path) = file(&golden) else { return };
    let gguf = Arc::new(Gguf::open(path).expect("the file opens"));
    let lm = from_gguf(gguf, &on_device()).expect("the model loads");
    let (mut furthest, mut same) = (0.0_f64, 0);
    for prompt in golden["prompts"].as_array().expect("prompts").iter().take(prompts) {
        let mut run = lm.start();
        let mut next = ids(&prompt["ids"]);
        for (i, step) in prompt["steps"].as_array().expect("steps").iter().take(STEPS).enumerate() {
            let logits = read(run.as_mut(), &next);
            let theirs = ids(&step["ids"]);
            let said = numbers(&step["logits"]);
            for (id, logit) in theirs.iter().zip(&said) {
                furthest = furthest.max(f64::from((logits[*id as usize] - logit).abs()));
            }
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("a vocabulary");
            if best != theirs[0] as usize {
                let gap = f64::from(said[0] - said[1]);
                assert!(best == theirs[1] as usize && gap <= TIE, "{name} step {i}: {best}, {theirs:?} {gap}");
                break;
            }
            same += 1;
            next = vec![best as u32];
        }
    }
    eprintln!("{name}: {same} tokens as llama.cpp, logits within {furthest:.3}");
    assert!(same > 0);
}

#[test]
fn smollm2_follows_llama_cpp() {
    follows_llama_cpp("smollm2-135m-instruct", 2);
}

#[test]
fn gemma_3_follows_llama_cpp() {
    follows_llama_cpp("gemma-3-270m", 1);
}
