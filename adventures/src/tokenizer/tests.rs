use super::*;
use crate::gguf::Gguf;
use crate::gguf::build::Builder;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn shared(name: &str) -> Option<PathBuf> {
    let path = root().join("../shared/data").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
    }
    path.exists().then_some(path)
}

/// A model that `adventures models pull` has fetched.
pub(crate) fn pulled(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("ADVENTURES_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/adventures")))?;
    let path = cache.join("models").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there; `adventures models pull` fetches it", path.display());
    }
    path.exists().then_some(path)
}

fn gguf(path: &Path) -> Tokenizer {
    Tokenizer::from_gguf(&Gguf::open(path).unwrap()).unwrap()
}

pub(crate) fn json(path: &Path) -> Tokenizer {
    let settings = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>"});
    Tokenizer::from_json(tokenizers::Tokenizer::from_file(path).unwrap(), &settings, &[]).unwrap()
}

fn goldens() -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(root().join("tests/goldens/tokenizer.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Texts that llama.cpp does not read as text: it lets them become byte or control tokens.
fn names_a_token(text: &str) -> bool {
    text.contains("<0x0A>")
}

#[test]
fn real_vocabularies_read_text_as_llama_cpp_does() {
    for (name, file) in
        [("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"), ("gemma-3-270m", "gemma-3-270m-q4_k_m.gguf")]
    {
        let Some(path) = pulled(&format!("{name}/{file}")) else { continue };
        let tokenizer = gguf(&path);
        for golden in goldens() {
            let text = golden["text"].as_str().unwrap();
            if names_a_token(text) {
                continue;
            }
            let read = tokenizer.encode(text).unwrap();
            assert_eq!(read, ids(&golden[name]), "{name}: {text:?}");
            // SentencePiece writes a space as ▁ and cannot tell the two apart afterwards.
            let expected = if name.starts_with("gemma") { text.replace('▁', " ") } else { text.to_owned() };
            assert_eq!(tokenizer.decode(&read).unwrap(), expected, "{name}");
        }
    }
}

#[test]
fn llama_2_reads_text_as_llama_cpp_does() {
    let Some(path) = shared("gguf-vocab/ggml-vocab-llama-spm.gguf") else { return };
    let tokenizer = gguf(&path);
    let input = std::fs::read_to_string(path.with_extension("gguf.inp")).unwrap();
    let output = std::fs::read_to_string(path.with_extension("gguf.out")).unwrap();
    let texts: Vec<&str> = input.trim_end_matches("\n__ggml_vocab_test__\n").split("\n__ggml_vocab_test__\n").collect();
    let expected: Vec<Vec<u32>> =
        output.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    assert_eq!(texts.len(), expected.len());
    assert!(texts.len() > 40);
    for (text, expected) in texts.iter().zip(expected) {
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
    }
}

#[test]
fn a_file_and_its_tokenizer_json_agree() {
    let Some(path) = shared("model-llama2-tiny-random/llama-2-tiny-random.gguf") else { return };
    let Some(other) = shared("tokenizers/llama-2/tokenizer.json") else { return };
    let (ours, theirs) = (gguf(&path), json(&other));
    for golden in goldens() {
        let text = golden["text"].as_str().unwrap();
        if text.contains("<0x0A>") {
            continue;
        }
        assert_eq!(ours.encode(text).unwrap(), theirs.encode(text).unwrap(), "{text:?}");
        assert_eq!(ours.encode_prompt(text).unwrap()[0], 1);
        assert_eq!(theirs.encode_prompt(text).unwrap()[0], 1);
    }
    assert_eq!(ours.vocab_size(), 32000);
    assert_eq!(theirs.vocab_size(), 32000);
    for id in 0..32000 {
        assert_eq!(ours.bytes(id), theirs.bytes(id), "token {id}");
    }
    assert!(ours.is_end(2) && theirs.is_end(2) && !ours.is_end(1));
}

fn every_control_text(tokenizer: &Tokenizer) -> Vec<String> {
    (0..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.control.text(id)).map(str::to_owned).collect()
}

fn vocabularies() -> Vec<(&'static str, Tokenizer)> {
    let mut found = Vec::new();
    for (name, path) in [
        ("SmolLM2", pulled("smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf")),
        ("Gemma 3", pulled("gemma-3-270m/gemma-3-270m-q4_k_m.gguf")),
        ("Llama 2", shared("gguf-vocab/ggml-vocab-llama-spm.gguf")),
    ] {
        found.extend(path.map(|path| (name, gguf(&path))));
    }
    for name in ["llama-2", "mistral-mixtral-v0.1"] {
        found.extend(shared(&format!("tokenizers/{name}/tokenizer.json")).map(|path| (name, json(&path))));
    }
    found
}

#[test]
fn text_never_becomes_a_control_token() {
    for (name, tokenizer) in vocabularies() {
        let controls = every_control_text(&tokenizer);
        assert!(controls.len() > 1, "{name}");
        for control in controls.iter().take(400) {
            for text in [control.clone(), format!("a{control}b"), format!(" {control} \n{control}{control}")] {
                let read = tokenizer.encode(&text).unwrap();
                let leaked = read.iter().find(|id| tokenizer.control.contains(**id));
                assert_eq!(leaked, None, "{name}: {text:?} gives {read:?}");
            }
        }
    }
}

#[test]
fn control_tokens_are_those_of_the_template() {
    for (name, tokenizer) in vocabularies() {
        let controls = every_control_text(&tokenizer);
        let (open, close) = (&controls[1], &controls[2 % controls.len()]);
        let expected =
            |ids: &[u32]| ids.iter().copied().filter(|id| tokenizer.control.contains(*id)).collect::<Vec<_>>();
        let plain = {
            let shield = tokenizer.shield(["x"]);
            expected(&tokenizer.encode_rendered(&format!("{open}user\nx{close}\n"), &shield).unwrap())
        };
        for control in controls.iter().take(60) {
            let mut contents = vec![control.clone(), format!("{control}{control} x"), format!("  {control}\n")];
            for (at, _) in control.char_indices().skip(1) {
                // Halves of a token beside each other and beside the template's own.
                contents.push(control[..at].to_owned());
                contents.push(control[at..].to_owned());
                contents.push(format!("{}{control}{}", &control[..at], &control[at..]));
            }
            for content in &contents {
                let shield = tokenizer.shield([content.as_str()]);
                let covered = shield.cover(content);
                for rendered in
                    [format!("{open}user\n{covered}{close}\n"), format!("{open}user\n{}{close}\n", covered.trim())]
                {
                    let read = expected(&tokenizer.encode_rendered(&rendered, &shield).unwrap());
                    assert_eq!(read, plain, "{name}: {content:?}");
                }
                for (at, _) in control.char_indices().skip(1) {
                    let rendered = format!("{open}{}{covered}{}{close}", &control[..at], &control[at..]);
                    let read = expected(&tokenizer.encode_rendered(&rendered, &shield).unwrap());
                    let without = tokenizer.encode_rendered(&rendered.replace(&covered, "-"), &shield).unwrap();
                    if !covered.is_empty() && !controls.iter().any(|c| c.contains(&control[..at]) && c != control) {
                        assert_eq!(read, expected(&without), "{name}: {content:?} between the halves of {control:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn shielding_leaves_plain_text_as_it_is() {
    for (name, tokenizer) in vocabularies() {
        for golden in goldens() {
            let text = golden["text"].as_str().unwrap();
            let shield = tokenizer.shield([text]);
            let covered = shield.cover(text);
            assert_eq!(shield.lift(&covered), text, "{name}");
            let mut plain = tokenizer.encode(text).unwrap();
            if tokenizer.add_bos {
                plain.insert(0, tokenizer.bos.unwrap());
            }
            assert_eq!(tokenizer.encode_rendered(&covered, &shield).unwrap(), plain, "{name}: {text:?}");
        }
    }
}

#[test]
fn a_text_that_holds_the_mark_is_kept() {
    let Some(path) = shared("gguf-vocab/ggml-vocab-llama-spm.gguf") else { return };
    let tokenizer = gguf(&path);
    let text = "\u{f0000}</s>\u{f0001}";
    let shield = tokenizer.shield([text]);
    assert_eq!(shield.lift(&shield.cover(text)), text);
    assert!(shield.cover(text).len() > text.len());
}

#[test]
fn bytes_stream_as_whole_characters() {
    let bytes = "a😀é".as_bytes();
    let broken = [&b"\xff\xf0\x9f"[..], b"x\xc3", b"\xa9\xe2\x82", b"\xf0\x9f\x98\x80\xe2"].concat();
    for whole in [bytes, &broken] {
        for step in 1..=whole.len() {
            let mut stream = TextStream::default();
            let mut text: String = whole.chunks(step).map(|chunk| stream.push(chunk)).collect();
            text.push_str(&stream.finish());
            assert_eq!(text, String::from_utf8_lossy(whole), "by {step}");
        }
    }
}

fn minimal(model: &str) -> Builder {
    Builder::new()
        .str("tokenizer.ggml.model", model)
        .strs("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "a", "b", "ab", "▁", "▁a"])
        .i32s("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1, 1, 1])
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
}

fn read(builder: &Builder) -> Result<Tokenizer> {
    Tokenizer::from_gguf(&Gguf::from_bytes(builder.bytes()).unwrap())
}

#[test]
fn small_vocabularies() {
    let scores = [0.0, 0.0, 0.0, -3.0, -4.0, -1.0, -5.0, -2.0];
    let spm = read(&minimal("llama").f32s("tokenizer.ggml.scores", &scores)).unwrap();
    assert_eq!(spm.encode("ab").unwrap(), [6, 5]);
    assert_eq!(spm.encode("a a").unwrap(), [7, 7]);
    assert_eq!(spm.encode_prompt("a").unwrap(), [1, 7]);
    assert_eq!(spm.decode(&[1, 7, 5, 2]).unwrap(), " aab");
    let size = spm.vocab_size() as u32;
    assert!(spm.decode(&[size - 1]).is_ok());
    let error = spm.decode(&[1, size]).unwrap_err().to_string();
    assert_eq!(error, format!("ids[1]={size}: the vocabulary has {size} tokens, 0 the first"));
    assert_eq!(spm.encode("").unwrap(), [0u32; 0]);
    let bpe =
        read(&minimal("gpt2").str("tokenizer.ggml.pre", "gpt-2").strs("tokenizer.ggml.merges", &["a b"])).unwrap();
    assert_eq!(bpe.encode("abaab").unwrap(), [5, 3, 5]);
    assert_eq!(bpe.encode_prompt("a").unwrap(), [3]);
}

#[test]
fn a_text_that_no_model_reads_is_refused() {
    let tokenizer =
        read(&minimal("gpt2").str("tokenizer.ggml.pre", "gpt-2").strs("tokenizer.ggml.merges", &["a b"])).unwrap();
    let text = "a ".repeat(MAX_TEXT / 2 + 1);
    let shield = tokenizer.shield(["x"]);
    for error in [tokenizer.encode(&text), tokenizer.encode_prompt(&text), tokenizer.encode_rendered(&text, &shield)] {
        assert!(error.unwrap_err().to_string().contains("the text has 16777218 bytes, at most 16777216"));
    }
}

#[test]
fn broken_vocabularies_are_refused() {
    let fails = |builder: &Builder, expected: &str| {
        let message = read(builder).expect_err("the vocabulary is wrong").to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    };
    fails(&Builder::new(), "\"tokenizer.ggml.tokens\" is missing");
    fails(&Builder::new().strs("tokenizer.ggml.tokens", &["a"; 0]), "tokenizer.ggml.tokens is empty");
    fails(&minimal("rwkv"), "tokenizer.ggml.model \"rwkv\"");
    fails(&minimal("llama"), "\"tokenizer.ggml.scores\" is missing");
    fails(&minimal("llama").f32s("tokenizer.ggml.scores", &[0.0]), "has 1 entries, there are 8 tokens");
    fails(&minimal("gpt2").str("tokenizer.ggml.pre", "new"), "tokenizer.ggml.pre \"new\"");
    fails(&minimal("gpt2"), "\"tokenizer.ggml.merges\" is missing");
    for merge in ["a", "a ", " b", "a x", "b a", "aaaaaaaaaaaaaaaaaaaaaaaa b", ""] {
        fails(&minimal("gpt2").strs("tokenizer.ggml.merges", &[merge]), "tokenizer.ggml.merges[0]");
    }
    fails(&minimal("llama").u32("tokenizer.ggml.eot_token_id", 8), "tokenizer.ggml.eot_token_id is 8");
    let bytes = Builder::new()
        .str("tokenizer.ggml.model", "llama")
        .strs("tokenizer.ggml.tokens", &["<0xZZ>"])
        .i32s("tokenizer.ggml.token_type", &[6])
        .f32s("tokenizer.ggml.scores", &[0.0]);
    fails(&bytes, "the byte token \"<0xZZ>\"");
}
