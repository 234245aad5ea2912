//! Streams over a small scripted model: what it says next depends on what it has read.

use super::{Finish, GenerateOptions, Generator, GeneratorOptions, Next};
use crate::error::Result;
use crate::models::{CausalLm, Run};
use crate::sampling::SamplingOptions;
use crate::template::{Message, Role, Template};
use crate::tokenizer::Tokenizer;
use candle_core::{Device, Tensor};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    said: usize,
}

/// More rows than the vocabulary has tokens, as models have whose tables are padded to a round number.
const ROWS: usize = 32_064;

struct Shared(Arc<Script>);

impl CausalLm for Shared {
    fn context(&self) -> usize {
        self.0.context
    }
    fn vocab_size(&self) -> usize {
        ROWS
    }
    fn start(&self) -> Box<dyn Run> {
        Box::new(Reading { script: Arc::clone(&self.0), read: 0, said: 0 })
    }
}

impl Run for Reading {
    fn read(&mut self, ids: &[u32]) -> Result<Tensor> {
        std::thread::sleep(self.script.pause);
        self.script.reads.fetch_add(1, Ordering::SeqCst);
        self.read += ids.len();
        let next = self.script.text.get(self.said).copied();
        self.said += 1;
        assert!(next != Some(b'!'), "the script said so");
        // Byte tokens begin at 3; 2 is the end.
        let id = next.map_or(2, |byte| u32::from(byte) + 3);
        let mut logits: Vec<f32> = (0..ROWS as u32).map(|i| f32::from(u8::from(i == id))).collect();
        // The rows of no token shout loudest.
        logits[32_000..].fill(2.0);
        Ok(Tensor::from_vec(logits, ROWS, &Device::Cpu)?)
    }
    fn len(&self) -> usize {
        self.read
    }
    fn rewind(&mut self, len: usize) -> Result<()> {
        self.read = len;
        Ok(())
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
    let generator = Generator {
        lm: Arc::new(Shared(Arc::new(script))),
        kept: Arc::default(),
        tokenizer: Arc::new(Tokenizer::from_gguf(&gguf).unwrap()),
        template: None,
        architecture: "script".into(),
        threads: 1,
    };
    Some((generator, reads))
}

fn run(generator: &Generator, options: GenerateOptions) -> (Vec<String>, Finish) {
    // A script that starts to speak after one token: the start token.
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

fn options(max_tokens: usize, stop: &[&str]) -> GenerateOptions {
    GenerateOptions { max_tokens, stop: stop.iter().map(|s| (*s).to_owned()).collect(), ..GenerateOptions::default() }
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
fn bad_options_are_refused_before_any_work() {
    let Some((generator, reads)) = generator("x", 100, Duration::ZERO) else { return };
    for (options, word) in [
        (options(0, &[]), "max_tokens=0"),
        (options(9, &[""]), "an empty text would end every answer"),
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
