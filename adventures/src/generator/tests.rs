//! Streams over a small scripted model: what it says next depends on what it has read.

use super::engine::Engine;
use super::logprob::Logits;
use super::{EngineLoad, Finish, GenerateOptions, Generation, Generator, GeneratorOptions, Next};
use crate::error::{Error, Result};
use crate::models::{CausalLm, Run};
use crate::sampling::SamplingOptions;
use crate::template::{Message, Role, Template};
use crate::tokenizer::Tokenizer;
use candle_core::{Device, Tensor};
use std::any::Any;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// Says the bytes of a text one after the other, as byte tokens of the tiny Llama vocabulary; panics at `!`.
struct Script {
    text: Vec<u8>,
    reads: Arc<AtomicUsize>,
    context: usize,
    pause: Duration,
}

struct Reading {
    script: Arc<Script>,
    read: usize,
}

/// More rows than the vocabulary has tokens, as models have whose tables are padded to a round number.
const ROWS: usize = 32_064;

/// What the script's model says before the token `id`; the rows of no token shout loudest.
fn logits(id: u32) -> Vec<f32> {
    let logit = |i| match i {
        i if i == id => 1.0,
        32_000.. => 2.0,
        i => -((i % 1000) as f32) / 500.0,
    };
    (0..ROWS as u32).map(logit).collect()
}

struct Shared(Arc<Script>);

impl CausalLm for Shared {
    fn context(&self) -> usize {
        self.0.context
    }
    fn vocab_size(&self) -> usize {
        ROWS
    }
    fn start(&self) -> Box<dyn Run> {
        Box::new(Reading { script: Arc::clone(&self.0), read: 0 })
    }
}

impl Run for Reading {
    fn read(&mut self, ids: &[u32]) -> Result<Tensor> {
        self.read_unless(ids, &AtomicBool::new(false))
    }
    fn read_unless(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<Tensor> {
        let end = Instant::now() + self.script.pause;
        while Instant::now() < end {
            if cancel.load(Ordering::SeqCst) {
                return Err(Error::Cancelled);
            }
            std::thread::sleep((end - Instant::now()).min(Duration::from_millis(1)));
        }
        self.script.reads.fetch_add(1, Ordering::SeqCst);
        self.read += ids.len();
        // It speaks after one token, the start token.
        let next = self.script.text.get(self.read - 1).copied();
        assert!(next != Some(b'!'), "the script said so");
        // Byte tokens begin at 3; 2 is the end.
        let id = next.map_or(2, |byte| u32::from(byte) + 3);
        Ok(Tensor::from_vec(logits(id), ROWS, &Device::Cpu)?)
    }
    fn len(&self) -> usize {
        self.read
    }
    fn rewind(&mut self, len: usize) -> Result<()> {
        self.read = len;
        Ok(())
    }
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// Returns a generator that says `text`, and how often its model was asked; `None` where the vocabulary is not at hand.
fn generator(text: &str, context: usize, pause: Duration) -> Option<(Generator, Arc<AtomicUsize>)> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data/model-llama2-tiny-random/llama-2-tiny-random.gguf");
    if !path.exists() {
        eprintln!("skipped: no {}", path.display());
        return None;
    }
    let gguf = crate::gguf::Gguf::open(path).unwrap();
    let reads = Arc::new(AtomicUsize::new(0));
    let script = Script { text: text.as_bytes().to_vec(), reads: Arc::clone(&reads), context, pause };
    let lm: Arc<dyn CausalLm> = Arc::new(Shared(Arc::new(script)));
    let generator = Generator {
        engine: Engine::new(Arc::clone(&lm), 2),
        lm,
        tokenizer: Arc::new(Tokenizer::from_gguf(&gguf).unwrap()),
        schemas: super::Schemas::default(),
        template: None,
        architecture: "script".into(),
        threads: 1,
        device: "cpu".into(),
    };
    Some((generator, reads))
}

fn run(generator: &Generator, options: GenerateOptions) -> (Vec<String>, Finish) {
    let mut generation = generator.complete("", options).unwrap();
    let mut pieces = Vec::new();
    loop {
        match generation.next(Duration::from_secs(5)).unwrap() {
            Next::Piece(piece) => pieces.push(piece),
            Next::Waiting => panic!("nothing for five seconds"),
            Next::End => return (pieces, generation.stats().finish.unwrap()),
        }
    }
}

/// How often the model is asked is counted without guesses at what follows.
fn options(max_tokens: usize, stop: &[&str]) -> GenerateOptions {
    GenerateOptions {
        prompt_lookup: false,
        max_tokens,
        stop: stop.iter().map(|s| (*s).to_owned()).collect(),
        ..GenerateOptions::default()
    }
}

#[test]
fn pieces_are_whole_characters_and_add_up() {
    let text = "a é 日本 🐉 end";
    let Some((generator, _)) = generator(text, 100, Duration::ZERO) else { return };
    let (pieces, finish) = run(&generator, options(99, &[]));
    assert_eq!((pieces.concat().as_str(), finish), (text, Finish::Stop));
    assert!(pieces.contains(&"🐉".to_owned()));
    // Cut in the middle of the dragon's four bytes.
    let cut = text.find('🐉').unwrap() + 2;
    let (pieces, finish) = run(&generator, options(cut, &[]));
    assert_eq!((pieces.concat(), finish), (format!("{}\u{fffd}", &text[..cut - 2]), Finish::Length));
}

#[test]
fn stop_strings_never_reach_the_reader() {
    let Some((generator, _)) = generator("one\nTwo\n\nThree", 100, Duration::ZERO) else { return };
    for (stop, want, finish) in [
        (vec!["\n\n"], "one\nTwo", Finish::StopString),
        (vec!["\n"], "one", Finish::StopString),
        (vec!["two", "ree"], "one\nTwo\n\nTh", Finish::StopString),
        (vec!["reef"], "one\nTwo\n\nThree", Finish::Stop),
    ] {
        let (pieces, ended) = run(&generator, options(99, &stop));
        assert_eq!((pieces.concat().as_str(), ended), (want, finish), "{stop:?}");
    }
}

#[test]
fn a_full_context_ends_the_answer() {
    let Some((generator, reads)) = generator("0123456789", 5, Duration::ZERO) else { return };
    let (pieces, finish) = run(&generator, options(99, &[]));
    assert_eq!((pieces.concat().as_str(), finish), ("01234", Finish::Context));
    assert_eq!(reads.load(Ordering::SeqCst), 5);
    let error = generator.complete("a long prompt of many words", options(9, &[])).unwrap_err().to_string();
    assert!(error.contains("this model reads 5 of prompt and answer together"), "{error}");
}

#[test]
fn closing_and_dropping_stop_the_model_within_a_token() {
    let text = "x".repeat(5000);
    for close in [true, false] {
        let Some((generator, reads)) = generator(&text, 9999, Duration::from_millis(2)) else { return };
        let mut generation = generator.complete("", options(5000, &[])).unwrap();
        for _ in 0..3 {
            assert!(matches!(generation.next(Duration::from_secs(5)).unwrap(), Next::Piece(_)));
        }
        if close {
            generation.close();
            assert_eq!(generation.stats().finish, Some(Finish::Closed));
            assert!(matches!(generation.next(Duration::ZERO).unwrap(), Next::End));
        } else {
            drop(generation);
        }
        let at_once = reads.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(100));
        assert!(reads.load(Ordering::SeqCst) <= at_once + 1);
    }
}

#[test]
fn a_reader_that_does_not_read_holds_the_model_back() {
    let Some((generator, reads)) = generator(&"x".repeat(5000), 9999, Duration::ZERO) else { return };
    let generation = generator.complete("", options(5000, &[])).unwrap();
    let start = Instant::now();
    while reads.load(Ordering::SeqCst) < 2 && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(reads.load(Ordering::SeqCst) <= 4);
    drop(generation);
}

#[test]
fn who_leaves_while_a_piece_is_read_ends_it() {
    // Longer than the test waits: the piece does not come to its end.
    let Some((generator, reads)) = generator("0123456789", 99, Duration::from_secs(60)) else { return };
    let generation = generator.complete("", options(99, &[])).unwrap();
    let begun = Instant::now();
    let until = |load: EngineLoad| {
        while generator.engine_load() != load {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", generator.engine_load());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    until(EngineLoad { reading: 1, ..EngineLoad::default() });
    drop(generation);
    until(EngineLoad::default());
    assert_eq!(reads.load(Ordering::SeqCst), 0);
}

#[test]
fn readers_that_do_not_read_keep_nobody_waiting() {
    let Some((generator, _)) = generator("0123456789", 99, Duration::ZERO) else { return };
    // More than there are slots, none of which ends.
    let mut held: Vec<_> = (0..5).map(|_| generator.complete("", options(99, &[])).unwrap()).collect();
    assert_eq!(run(&generator, options(99, &[])).0.concat(), "0123456789");
    for (i, generation) in held.iter_mut().enumerate() {
        let mut text = String::new();
        while let Next::Piece(piece) = generation.next(Duration::from_secs(5)).unwrap() {
            text += &piece;
        }
        assert_eq!((text.as_str(), generation.stats().finish), ("0123456789", Some(Finish::Stop)), "answer {i}");
    }
}

#[test]
fn answers_outlive_their_generator() {
    let Some((generator, _)) = generator("0123456789", 99, Duration::from_millis(1)) else { return };
    let mut generation = generator.complete("", options(99, &[])).unwrap();
    drop(generator);
    let mut text = String::new();
    while let Next::Piece(piece) = generation.next(Duration::from_secs(5)).unwrap() {
        text += &piece;
    }
    assert_eq!(text, "0123456789");
}

#[test]
fn guesses_from_the_text_change_nothing_but_the_time() {
    let song = "row row row your boat, row row row your boat, row row the boat home, row row row your boat";
    let Some((generator, _)) = generator(song, 999, Duration::ZERO) else { return };
    for max_tokens in [1, 2, 30, 31, 32, 33, 34, 50, 999] {
        for stop in [&["home"][..], &["boat, row"], &[]] {
            let mut got = Vec::new();
            for prompt_lookup in [false, true] {
                let options = GenerateOptions { prompt_lookup, logprobs: Some(0), ..options(max_tokens, stop) };
                let mut generation = generator.complete("", options).unwrap();
                let mut text = String::new();
                while let Next::Piece(piece) = generation.next(Duration::from_secs(5)).unwrap() {
                    text += &piece;
                }
                let stats = generation.stats();
                assert!(stats.accepted_tokens <= stats.drafted_tokens && (prompt_lookup || stats.drafted_tokens == 0));
                assert!(
                    !prompt_lookup || max_tokens < 40 || stats.accepted_tokens > 20 || text.len() < 40,
                    "{stats:?}"
                );
                got.push((text, stats.finish, stats.generated_tokens, generation.logprobs(0)));
            }
            assert_eq!(got[0], got[1], "{max_tokens} {stop:?}");
        }
    }
}

#[test]
fn a_guess_never_goes_beyond_the_context() {
    for context in 30..60 {
        let Some((generator, _)) = generator(&"abc ".repeat(40), context, Duration::ZERO) else { return };
        let (pieces, finish) = run(&generator, GenerateOptions { prompt_lookup: true, ..options(999, &[]) });
        assert_eq!((pieces.concat().len(), finish), (context, Finish::Context));
    }
}

#[test]
fn a_panic_is_an_error_and_the_next_answer_works() {
    let Some((generator, _)) = generator("ab!", 100, Duration::ZERO) else { return };
    let mut generation = generator.complete("", options(99, &[])).unwrap();
    let error = loop {
        match generation.next(Duration::from_secs(5)) {
            Ok(Next::Piece(_)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("internal error: the script said so"), "{error}");
    assert!(matches!(generation.next(Duration::ZERO).unwrap(), Next::End));
    assert_eq!(generation.stats().finish, Some(Finish::Error));
    assert_eq!(run(&generator, options(1, &[])).0.concat(), "a");
}

#[test]
fn an_error_is_told_once_however_late_it_is_read() {
    let Some((generator, _)) = generator("!", 100, Duration::ZERO) else { return };
    let mut generation = generator.complete("", options(99, &[])).unwrap();
    let start = Instant::now();
    while generation.stats().finish.is_none() && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(generation.stats().finish, Some(Finish::Error));
    assert!(generation.next(Duration::from_secs(5)).is_err());
    assert!(matches!(generation.next(Duration::from_secs(5)).unwrap(), Next::End));
    generation.close();
    assert_eq!(generation.stats().finish, Some(Finish::Error), "closing hides no error");
}

#[test]
fn a_token_that_the_tokenizer_does_not_have_is_never_said() {
    let Some((generator, _)) = generator("ok", 100, Duration::ZERO) else { return };
    assert_eq!(generator.vocab_size(), generator.tokenizer().vocab_size() + 64);
    for temperature in [0.0, 1e-3] {
        let sampling = SamplingOptions { temperature, seed: Some(1), ..SamplingOptions::default() };
        let (pieces, finish) = run(&generator, GenerateOptions { sampling, ..options(99, &[]) });
        assert_eq!((pieces.concat().as_str(), finish), ("ok", Finish::Stop));
    }
}

#[test]
fn log_probabilities_are_those_of_the_softmax_whatever_was_chosen() {
    let Some((generator, _)) = generator("aé", 100, Duration::ZERO) else { return };
    let start = |sampling, n| {
        let mut generation =
            generator.complete("", GenerateOptions { sampling, logprobs: n, ..options(99, &[]) }).unwrap();
        while !matches!(generation.next(Duration::from_secs(5)).unwrap(), Next::End) {}
        generation
    };
    let [a, c3, a9, z] = [b'a', 0xC3, 0xA9, b'z'].map(|byte| u32::from(byte) + 3);
    // The z is chosen first and penalized then; it is chosen again in place of the banned second byte of é.
    let sampling = SamplingOptions {
        logit_bias: [(a9, f64::NEG_INFINITY), (z, 2.5)].into(),
        frequency_penalty: 2.0,
        ..SamplingOptions::default()
    };
    let generation = start(sampling.clone(), Some(4));
    let got = generation.logprobs(0).unwrap();
    assert_eq!(got.len(), generation.stats().generated_tokens, "the end token is not counted");
    assert_eq!(generation.logprobs(1).unwrap(), got[1..]);
    assert_eq!(got.iter().map(|token| token.id).collect::<Vec<_>>(), [z, c3, z]);
    assert_eq!(got.iter().map(|token| token.bytes.as_slice()).collect::<Vec<_>>(), [&b"z"[..], &[0xC3], b"z"]);
    for (token, said) in got.iter().zip([a, c3, a9]) {
        let logits = &logits(said)[..32_000];
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let alternatives: Vec<u32> = token.alternatives.iter().map(|other| other.id).collect();
        assert_eq!(alternatives, [said, 0, 1000, 2000], "of equals the lower id");
        for one in token.alternatives.iter().chain([token]) {
            let want = (f64::from(logits[one.id as usize]).exp() / total).ln();
            assert!((one.logprob - want).abs() < 1e-9, "{one:?}: {want}");
        }
        assert!(token.alternatives.iter().all(|other| other.alternatives.is_empty()));
    }
    assert!(start(sampling.clone(), Some(0)).logprobs(0).unwrap().iter().all(|token| token.alternatives.is_empty()));
    assert_eq!(start(sampling, None).logprobs(0), None);
}

#[test]
fn log_probabilities_of_infinite_logits_are_numbers() {
    let Some((generator, _)) = generator("", 100, Duration::ZERO) else { return };
    let logprob = |logits: &[f32], id| Logits::new(logits).logprob(id, 0, generator.tokenizer()).logprob;
    let infinite = [f32::INFINITY, f32::NEG_INFINITY, 0.0];
    assert_eq!(logprob(&infinite, 0), 0.0);
    assert!(logprob(&infinite, 1) < logprob(&infinite, 2) && logprob(&infinite, 1).is_finite());
}

#[test]
fn bad_options_are_refused_before_any_work() {
    let Some((generator, reads)) = generator("x", 100, Duration::ZERO) else { return };
    for (options, word) in [
        (options(0, &[]), "max_tokens=0"),
        (options(9, &[""]), "an empty text would end every answer"),
        (
            GenerateOptions { logprobs: Some(21), ..options(9, &[]) },
            "logprobs=21: expected a number of alternatives from 0 to 20",
        ),
        // The model has a row for it, the vocabulary has no token.
        (
            GenerateOptions {
                sampling: SamplingOptions { logit_bias: [(32_000, 1.0)].into(), ..SamplingOptions::default() },
                ..options(9, &[])
            },
            "logit_bias[32000]=1: the vocabulary has 32000 tokens",
        ),
        (GenerateOptions { prefix: "Take".into(), ..options(9, &[]) }, "prefix=\"Take\""),
    ] {
        assert!(generator.complete("", options).unwrap_err().to_string().contains(word), "{word}");
    }
    assert!(generator.generate(&[], options(9, &[])).unwrap_err().to_string().contains("no messages"));
    let message = Message::new(Role::User, "x");
    assert!(generator.generate(&[message], options(9, &[])).unwrap_err().to_string().contains("use complete()"));
    assert_eq!(reads.load(Ordering::SeqCst), 0);
    assert!(Generator::load("/nothing/here.gguf", &GeneratorOptions::default()).is_err());
}

#[test]
fn a_broken_template_fails_who_uses_it_and_nobody_else() {
    let Some((mut generator, _)) = generator("ok", 100, Duration::ZERO) else { return };
    generator.template = Some(Template::new("{% if %}").map_err(|e| e.to_string()));
    let message = Message::new(Role::User, "x");
    let error = generator.generate(&[message], options(9, &[])).unwrap_err();
    assert!(matches!(error, crate::Error::Invalid(_)), "{error:?}");
    assert!(error.to_string().contains("the chat template cannot be read: syntax error"), "{error}");
    assert_eq!(run(&generator, options(9, &[])).0.concat(), "ok");
}

/// A template in the manner of Llama 2: its last words are text, and an answer follows them without a control token between.
const INSTRUCT: &str = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]\n{% else %}{{ m.content }}</s>\
    {% endif %}{% endfor %}";

#[test]
fn a_prefix_is_read_as_the_beginning_of_an_answer() {
    let Some((mut generator, _)) = generator("ok", 100, Duration::ZERO) else { return };
    generator.template = Some(Ok(Template::new(INSTRUCT).unwrap()));
    let question = Message::new(Role::User, "Which wood floats?");
    for prefix in ["Balsa", " Balsa", "\nBalsa, oak", "</s>", "[/INST]", "s>", "é🐉"] {
        let asked = generator.prompt(std::slice::from_ref(&question), prefix).unwrap();
        let answered = [question.clone(), Message::new(Role::Assistant, prefix)];
        // The same answer in full, with the end token that the template writes after it.
        let mut whole = generator.prompt(&answered, "").unwrap();
        assert_eq!(whole.pop(), Some(2));
        assert_eq!(asked, whole, "{prefix:?}");
        assert!(!asked.contains(&2), "{prefix:?} ends the answer");
    }
    // Both halves by themselves would be other tokens: the test sees a boundary where there is one.
    let mut halves = generator.prompt(std::slice::from_ref(&question), "").unwrap();
    halves.extend(generator.tokenizer.encode("Balsa").unwrap());
    assert_ne!(generator.prompt(&[question], "Balsa").unwrap(), halves);
}

/// Counts how often it was woken; a thread may wait for that.
#[derive(Default)]
struct Alarm {
    rung: Mutex<usize>,
    rings: Condvar,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        *self.rung.lock().unwrap() += 1;
        self.rings.notify_all();
    }
}

impl Alarm {
    fn rung(&self) -> usize {
        *self.rung.lock().unwrap()
    }

    /// Waits until it has been woken more than `before` times.
    fn wait(&self, before: usize) {
        let waits = |rung: &mut usize| *rung <= before;
        let woken = self.rings.wait_timeout_while(self.rung.lock().unwrap(), Duration::from_secs(20), waits).unwrap();
        assert!(!woken.1.timed_out(), "nobody woke the task");
    }
}

/// Drives an answer as an executor does: it is polled only after it was woken.
fn drive(generation: &mut Generation) -> (String, Option<String>) {
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(Arc::clone(&alarm));
    let mut context = Context::from_waker(&waker);
    let (mut text, mut error) = (String::new(), None);
    loop {
        let before = alarm.rung();
        match generation.poll_next(&mut context) {
            Poll::Ready(Some(Ok(piece))) => text += &piece,
            Poll::Ready(Some(Err(e))) => error = Some(e.to_string()),
            Poll::Ready(None) => return (text, error),
            Poll::Pending => alarm.wait(before),
        }
    }
}

#[test]
fn a_task_is_woken_for_each_change() {
    for pause in [Duration::ZERO, Duration::from_millis(3)] {
        let Some((generator, _)) = generator("a é 日本 🐉 end", 100, pause) else { return };
        let mut generation = generator.complete("", options(99, &[])).unwrap();
        assert_eq!(drive(&mut generation), ("a é 日本 🐉 end".into(), None));
        assert_eq!(generation.stats().finish, Some(Finish::Stop));
        assert_eq!(drive(&mut generation), (String::new(), None), "the end stays the end");
    }
    let Some((generator, _)) = generator("ab!", 100, Duration::from_millis(3)) else { return };
    let (text, error) = drive(&mut generator.complete("", options(99, &[])).unwrap());
    assert_eq!(text, "ab");
    assert!(error.is_some_and(|error| error.contains("internal error: the script said so")));
}

#[test]
fn closing_wakes_the_task_that_waits_and_no_other() {
    // The first token takes long enough for all that happens before it.
    let Some((generator, _)) = generator("x", 100, Duration::from_secs(2)) else { return };
    let mut generation = generator.complete("", options(99, &[])).unwrap();
    let alarms = [(); 2].map(|()| Arc::new(Alarm::default()));
    for alarm in &alarms {
        let waker = Waker::from(Arc::clone(alarm));
        for _ in 0..3 {
            assert!(generation.poll_next(&mut Context::from_waker(&waker)).is_pending());
        }
    }
    assert_eq!(Arc::strong_count(&alarms[0]), 1, "the task that was polled before is let go");
    assert_eq!(Arc::strong_count(&alarms[1]), 2, "one waker is kept, however often it was polled");
    generation.close();
    assert_eq!(alarms.each_ref().map(|alarm| alarm.rung()), [0, 1]);
    assert!(matches!(generation.poll_next(&mut Context::from_waker(Waker::noop())), Poll::Ready(None)));
    assert_eq!(Arc::strong_count(&alarms[1]), 1);
}

/// A waker that looks at the answer at once, as one may that runs its task where it is woken.
#[test]
fn a_task_may_run_where_it_is_woken() {
    struct Eager(Mutex<Option<Generation>>, Alarm);
    impl Wake for Eager {
        fn wake(self: Arc<Self>) {
            if let Some(generation) = self.0.lock().unwrap().as_mut() {
                assert!(!matches!(generation.next(Duration::ZERO).unwrap(), Next::Waiting));
            }
            *self.1.rung.lock().unwrap() += 1;
            self.1.rings.notify_all();
        }
    }
    let Some((generator, _)) = generator("x", 100, Duration::from_millis(300)) else { return };
    let eager = Arc::new(Eager(Mutex::default(), Alarm::default()));
    let mut generation = generator.complete("", options(99, &[])).unwrap();
    let waker = Waker::from(Arc::clone(&eager));
    assert!(generation.poll_next(&mut Context::from_waker(&waker)).is_pending());
    *eager.0.lock().unwrap() = Some(generation);
    eager.1.wait(0);
}

/// Waits until the load is that of `want`.
fn wait_for(generator: &Generator, want: EngineLoad) {
    let start = Instant::now();
    while generator.engine_load() != want {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}, not {want:?}", generator.engine_load());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_load_says_who_waits_is_read_and_is_written() {
    let load = |waiting, reading, writing| EngineLoad { waiting, reading, writing };
    // Two slots, and five answers that come at once: while the first prompt is read, nobody has gone on.
    let Some((generator, _)) = generator(&"x".repeat(500), 999, Duration::from_millis(20)) else { return };
    assert_eq!(generator.engine_load(), load(0, 0, 0));
    let mut open: Vec<_> = (0..5).map(|_| generator.complete("", options(400, &[])).unwrap()).collect();
    let now = generator.engine_load();
    assert_eq!(now.waiting + now.reading + now.writing, 5);
    assert!(now.waiting >= 3, "{now:?}");
    // Readers that do not read give their slots away; the answers are still there.
    wait_for(&generator, load(0, 0, 5));
    // A reader that is gone and one that says so.
    drop(open.remove(0));
    open[0].close();
    wait_for(&generator, load(0, 0, 3));
    drop(open);
    wait_for(&generator, load(0, 0, 0));
}

#[test]
fn who_sees_the_end_finds_the_slot_free() {
    for text in ["ab", "ab!"] {
        let Some((generator, _)) = generator(text, 100, Duration::ZERO) else { return };
        for _ in 0..50 {
            let mut generation = generator.complete("", options(99, &[])).unwrap();
            while !matches!(generation.next(Duration::from_secs(5)), Ok(Next::End) | Err(_)) {}
            assert_eq!(generator.engine_load(), EngineLoad::default());
        }
    }
}
