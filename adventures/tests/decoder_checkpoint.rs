//! The decoder on small random checkpoints, against the logits of transformers (`tools/goldens_decoder.py`).

mod tiny;

use adventures::Error;
use adventures::models::decoder::{DecoderOptions, Quantize, bidirectional};
use adventures::models::{Batch, CausalLm, Step};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tiny::{NAMES, assert_near, checkpoint, follows, golden, goldens, ids, load, numbers, read, text};

fn plain(name: &str) -> Arc<dyn CausalLm> {
    load(name, &DecoderOptions::default())
}

fn follows_transformers(name: &str) {
    follows(name, plain(name).as_ref());
}

#[test]
fn a_piece_that_is_cancelled_leaves_the_run_as_it_was() {
    for name in ["tiny-llama", "tiny-gemma2"] {
        let lm = plain(name);
        let (before, piece) = (text(20, 1), text(40, 2));
        let [mut run, mut fresh] = [lm.start(), lm.start()];
        for run in [&mut run, &mut fresh] {
            read(run.as_mut(), &before);
        }
        let mut cancelled = 0;
        for wait in 0..100 {
            let cancel = AtomicBool::new(wait == 0);
            let result = std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_micros(10 * wait));
                    cancel.store(true, Ordering::Relaxed);
                });
                run.read_unless(&piece, &cancel)
            });
            match result {
                Ok(_) => run.rewind(before.len()).expect("it was just read"),
                Err(Error::Cancelled) => cancelled += 1,
                Err(e) => panic!("{e}"),
            }
            assert_eq!(run.len(), before.len());
        }
        assert!(cancelled > 0);
        assert_eq!(read(run.as_mut(), &piece), read(fresh.as_mut(), &piece), "{name}");
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

#[test]
fn smollm3_follows_transformers() {
    follows_transformers("tiny-smollm3");
}

/// The pairs of its heads are left as they are, stretched in part and stretched.
#[test]
fn yarn_follows_transformers() {
    follows_transformers("tiny-yarn");
}

#[test]
fn mistral_with_an_adapter_follows_peft() {
    let adapters = vec![goldens().join("tiny-llm2vec/causal")];
    let lm = load("tiny-llm2vec/base", &DecoderOptions { adapters, ..DecoderOptions::default() });
    follows("tiny-llm2vec", lm.as_ref());
}

/// Without the causal mask, in one batch with others and alone.
#[test]
fn every_family_encodes_as_transformers_without_the_mask() {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads start");
    let pool = Arc::new(threads);
    for name in NAMES.iter().filter(|name| **name != "tiny-gemma") {
        let golden = golden(name);
        let ids = ids(&golden["ids"]);
        let encoder =
            bidirectional(checkpoint(name), &DecoderOptions::default(), pool.clone()).expect("the model loads");
        let encode = |ids: Vec<u32>, lengths: Vec<usize>| -> Vec<Vec<f32>> {
            encoder.encode(&Batch { ids, lengths, ..Batch::default() }).expect("it encodes").to_vec2().expect("f32")
        };
        let alone = encode(ids.clone(), vec![ids.len()]);
        for (t, want) in golden["bidirectional"].as_array().expect("a row per token").iter().enumerate() {
            assert_near(&alone[t], &numbers(want), 1e-4, &format!("{name}, position {t}"));
        }
        let several = [&ids[5..12], &ids[..], &ids[..1]].concat();
        let together = encode(several, vec![7, ids.len(), 1]);
        assert_eq!(together[7..7 + ids.len()], alone, "{name}");
        for (ids, lengths, message) in [
            (vec![3, 40], vec![2], "token 40 is outside of the vocabulary of 40"),
            (vec![1; 65], vec![65], "65 tokens do not fit the context of 64"),
            (vec![1; 3], vec![1], "lengths [1] of 3 tokens"),
        ] {
            let error =
                encoder.encode(&Batch { ids, lengths, ..Batch::default() }).expect_err("it is refused").to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}

#[test]
fn quantized_logits_are_near_the_others() {
    for name in ["tiny-gemma", "tiny-llm2vec/base"] {
        // In random weights errors grow from layer to layer: rounded by torch, weights to 8 and to 5 bits and activations to
        // 8, the second model's logits change by 0.044 and 0.28.
        for (quantize, most) in [(Quantize::Q8_0, 0.06), (Quantize::Q4K, 0.35)] {
            let ids = text(20, 5);
            let want = read(plain(name).start().as_mut(), &ids);
            let options = DecoderOptions { quantize: Some(quantize), ..DecoderOptions::default() };
            let got = read(load(name, &options).start().as_mut(), &ids);
            let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
            let difference = length(&mut want.iter().zip(&got).map(|(a, b)| a - b)) / length(&mut want.iter().copied());
            assert!(difference > 0.0 && difference < most, "{name}, {}: {difference}", quantize.name());
        }
    }
}

#[test]
fn a_rewound_run_is_as_a_fresh_one() {
    for name in NAMES {
        let lm = plain(name);
        let (beginning, wrong, right) = (text(9, 1), text(20, 2), text(17, 3));
        let mut run = lm.start();
        read(run.as_mut(), &beginning);
        read(run.as_mut(), &wrong);
        run.rewind(beginning.len()).expect("it rewinds");
        assert_eq!(run.len(), beginning.len());
        let rewound = read(run.as_mut(), &right);
        let mut fresh = lm.start();
        read(fresh.as_mut(), &beginning);
        assert_eq!(rewound, read(fresh.as_mut(), &right), "{name}");
        assert!(run.rewind(27).is_err(), "only 26 tokens have been read");
    }
}

#[test]
fn runs_do_not_disturb_each_other() {
    let lm = plain("tiny-gemma3_text");
    let alone = |seed: u32| -> Vec<Vec<f32>> {
        let mut run = lm.start();
        text(20, seed).chunks(3).map(|part| read(run.as_mut(), part)).collect()
    };
    // Side by side in one thread, a piece of each in turn.
    let mut runs: Vec<_> = (0..40).map(|seed| (lm.start(), text(20, seed), Vec::new())).collect();
    for piece in 0..7 {
        for (run, text, logits) in &mut runs {
            logits.push(read(run.as_mut(), &text[3 * piece..(3 * piece + 3).min(20)]));
        }
    }
    for (seed, (_, _, logits)) in runs.into_iter().enumerate() {
        assert_eq!(logits, alone(seed as u32), "run {seed}");
    }
    // And from threads of their own.
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|seed| scope.spawn(move || (seed, alone(seed)))).collect();
        for thread in threads {
            let (seed, logits) = thread.join().expect("it computes");
            assert_eq!(logits, alone(seed), "thread {seed}");
        }
    });
}

#[test]
fn a_step_of_many_runs_is_each_alone() {
    for name in NAMES {
        let lm = plain(name);
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
            assert_eq!(rows.len(), 5);
            for (((run, alone), ids), rows) in runs.iter_mut().zip(&ids).zip(rows) {
                assert_eq!(rows.is_err(), ids.is_empty(), "{name}");
                for (i, id) in ids.iter().enumerate() {
                    assert_eq!(rows.as_ref().expect("it reads")[i], read(alone.as_mut(), &[*id]), "{name}");
                }
                assert_eq!(run.len(), alone.len());
                // As after a wrong guess.
                let len = run.len() - usize::from(ids.len() > 2);
                run.rewind(len).expect("it rewinds");
                alone.rewind(len).expect("it rewinds");
            }
        }
    }
}

#[test]
fn a_run_of_another_model_is_refused() {
    let (lm, other) = (plain("tiny-llama"), plain("tiny-llama"));
    let (mut own, mut foreign) = (lm.start(), other.start());
    let mut steps = [Step { run: foreign.as_mut(), ids: &[1] }, Step { run: own.as_mut(), ids: &[1] }];
    let rows = lm.step(&mut steps);
    assert!(rows[0].as_ref().expect_err("it is refused").to_string().contains("another model"));
    assert!(rows[1].is_ok());
    assert_eq!((own.len(), foreign.len()), (1, 0));
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let lm = plain("tiny-mistral");
    let (mut run, mut other) = (lm.start(), lm.start());
    assert_eq!(lm.context(), 64);
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
}
