//! What an answer keeps to, a JSON schema, a regular expression or one of given texts: which tokens may come next.
//!
//! llguidance reads it and walks the vocabulary's trie (<https://github.com/guidance-ai/llguidance>). Tokens are never
//! forced on the model: each is its own choice among those that the schema allows, so that a text is one that the model could
//! have written without.

mod form;

pub(crate) use form::Form;

use crate::error::{Error, Result, invalid, message};
use crate::tokenizer::Tokenizer;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::Value;
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

/// The longest schema, in bytes of JSON: twice what `OpenAI` takes.
const MAX_SCHEMA: usize = 256 << 10;
/// How deep a schema may nest with its references followed, in objects and arrays. llguidance follows them by recursion, which
/// takes up to 16 KiB a level.
const MAX_DEPTH: usize = 8000;
/// Twice what that takes; what is not used of it is never taken from the machine.
const STACK: usize = 256 << 20;
/// The most bytes of regular expressions in a schema: time and memory grow with their square, to 10 s and 0.8 GB at 80,000.
const MAX_PATTERNS: usize = 8 << 10;
/// How much of a problem is told, in characters: llguidance quotes whole expressions.
const MAX_PROBLEM: usize = 300;
/// What each space between the parts of a JSON text may be: small models indent for ever where nothing ends it.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";
/// The longest token that the trie holds, in bytes; its nodes have 10 bits for their depth.
const MAX_TOKEN: usize = 1000;
/// How many states a schema's lexer may have, of 1 to 2 KB each.
const MAX_STATES: usize = 50_000;

/// Reads schemas and the like for one tokenizer. What that needs of the vocabulary is made at the first schema, and once.
#[derive(Default)]
pub(crate) struct Schemas {
    factory: OnceLock<std::result::Result<ParserFactory, String>>,
}

impl Schemas {
    /// Returns what keeps an answer to `form`.
    ///
    /// `prefix` is how the answer begins. Where `trim_start`, a space at the start of the first token is none of the answer's.
    ///
    /// Fails where the form is no such thing, is too large, uses what is not supported, or does not allow the prefix.
    pub(crate) fn constraint(
        &self,
        form: &Form,
        tokenizer: &Tokenizer,
        prefix: &str,
        trim_start: bool,
    ) -> Result<Constraint> {
        let name = form.name();
        let grammar = form.grammar()?;
        let work = || self.matcher(name, grammar, tokenizer);
        let (env, matcher) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("schema".into()).stack_size(STACK).spawn_scoped(scope, work);
            let thread = thread.map_err(|e| Error::io("starting the thread that reads a schema", e))?;
            thread.join().unwrap_or_else(|panic| invalid!("{name}: {}", message(&*panic)))
        })?;
        let mut constraint = Constraint { name, env, matcher, trim_start };
        if !prefix.is_empty() {
            constraint.read(prefix)?;
        }
        Ok(constraint)
    }

    fn matcher(&self, name: &str, grammar: TopLevelGrammar, tokenizer: &Tokenizer) -> Result<(TokEnv, Matcher)> {
        let factory = self.factory.get_or_init(|| factory(tokenizer));
        let factory =
            factory.as_ref().map_err(|e| Error::Unsupported(format!("{name}: this model cannot keep to one: {e}")))?;
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        match matcher.get_error() {
            Some(problem) => Err(refused(name, problem)),
            None if matcher.is_stopped() => invalid!("{name}: it allows no answer"),
            // The first mask costs the most, and shows whether the form can be kept to at all.
            None => {
                matcher.compute_mask_or_eos().map_err(|e| refused(name, e))?;
                Ok((Arc::clone(factory.tok_env()), matcher))
            }
        }
    }
}

/// Returns the grammar of `schema`, the JSON text of a JSON schema.
fn grammar(schema: &str) -> Result<TopLevelGrammar> {
    let mut schema = parse(schema)?;
    let options = JsonCompileOptions { whitespace_pattern: Some(WHITE_SPACE.into()), ..JsonCompileOptions::default() };
    options.apply_to(&mut schema);
    Ok(TopLevelGrammar::from_json_schema(schema))
}

fn parse(schema: &str) -> Result<Value> {
    if schema.len() > MAX_SCHEMA {
        return invalid!("schema: it has {} bytes of JSON, at most {MAX_SCHEMA} are read", schema.len());
    }
    // The parser's own limit on nesting holds here: 128 levels.
    let schema = match serde_json::from_str(schema) {
        Ok(value @ Value::Object(_)) => value,
        Ok(_) => return invalid!("schema: expected a JSON object such as {{\"type\": \"object\"}}"),
        Err(e) => return invalid!("schema: not JSON: {e}"),
    };
    let mut size = Size::default();
    size.add(&schema);
    if size.patterns > MAX_PATTERNS {
        return invalid!("schema: its patterns have {} bytes, at most {MAX_PATTERNS} are read", size.patterns);
    }
    let depth = size.depth(&schema);
    if depth > MAX_DEPTH {
        return invalid!("schema: it nests {depth} levels with its references followed, at most {MAX_DEPTH} are read");
    }
    Ok(schema)
}

/// What of a schema costs more than its length.
#[derive(Default)]
struct Size<'a> {
    patterns: usize,
    references: HashSet<&'a str>,
}

impl<'a> Size<'a> {
    fn add(&mut self, value: &'a Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.add(item)),
            Value::Object(fields) => {
                for (key, field) in fields {
                    match (key.as_str(), field) {
                        ("$ref", Value::String(reference)) => {
                            self.references.insert(reference);
                        }
                        ("pattern", Value::String(pattern)) => self.patterns += pattern.len(),
                        ("patternProperties", Value::Object(fields)) => {
                            self.patterns += fields.keys().map(String::len).sum::<usize>();
                        }
                        _ => {}
                    }
                    self.add(field);
                }
            }
            _ => {}
        }
    }

    /// Returns the most levels that following each reference once may come to.
    fn depth(&self, schema: &Value) -> usize {
        let whole = depth(schema);
        let targets =
            self.references.iter().map(|reference| reference.strip_prefix('#').and_then(|p| schema.pointer(p)));
        whole + targets.map(|target| target.map_or(whole, depth)).sum::<usize>()
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn factory(tokenizer: &Tokenizer) -> std::result::Result<ParserFactory, String> {
    let ids = 0..tokenizer.vocab_size() as u32;
    let ends: Vec<u32> = ids.clone().filter(|id| tokenizer.is_end(*id)).collect();
    let Some(end) = ends.first() else {
        return Err("the tokenizer has no end token".into());
    };
    let words: Vec<Vec<u8>> = ids.map(|id| word(tokenizer, id).to_vec()).collect();
    let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, *end), &words).with_eos_tokens(&ends);
    // Not canonical: so that what a schema forces is still the model's to cut into tokens.
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = llguidance::earley::SlicedBiasComputer::json_slices();
    let mut factory =
        ParserFactory::new(&env, InferenceCapabilities::default(), &slices).map_err(|e| problem(&e.to_string()))?;
    factory.quiet();
    *factory.limits_mut() =
        ParserLimits { max_lexer_states: MAX_STATES, verbose_errors: false, ..ParserLimits::default() };
    Ok(factory)
}

/// The bytes that `id` may be matched as; none for what is no text.
fn word(tokenizer: &Tokenizer, id: u32) -> &[u8] {
    let bytes = tokenizer.bytes(id);
    // The byte 0xFF is in no UTF-8; to llguidance it means that a control token follows.
    let text = !tokenizer.is_end(id) && bytes.len() <= MAX_TOKEN && !bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER);
    if text { bytes } else { b"" }
}

/// Where an answer is in what it keeps to.
pub(crate) struct Constraint {
    /// The option that asked for it, as errors name it.
    name: &'static str,
    env: TokEnv,
    matcher: Matcher,
    /// Whether the next token is the first, whose space at the start is none of the answer's.
    trim_start: bool,
}

impl Constraint {
    /// Returns the option that asked for it.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Makes the logits of all tokens that it does not allow next minus infinity: one for each token of the vocabulary.
    ///
    /// End tokens are allowed where the text is whole.
    pub(crate) fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        let mut allowed = self.matcher.compute_mask_or_eos().map_err(|e| refused(self.name, e))?;
        if self.trim_start {
            for id in allowed.to_list() {
                if let Some(spaced) = self.spaced(id) {
                    allowed.allow_token(spaced);
                }
            }
        }
        for (logits, bits) in logits.chunks_mut(32).zip(allowed.as_slice()) {
            match *bits {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                bits => {
                    for (i, x) in logits.iter_mut().enumerate().filter(|(i, _)| bits >> i & 1 == 0) {
                        debug_assert!(i < 32);
                        *x = f32::NEG_INFINITY;
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes on by `id`, which the mask allowed.
    pub(crate) fn accept(&mut self, id: u32) -> Result<()> {
        let id = if std::mem::take(&mut self.trim_start) { self.unspaced(id) } else { id };
        self.matcher.consume_token(id).map_err(|e| refused(self.name, e))
    }

    /// Returns whether the text is whole and nothing may follow.
    pub(crate) fn is_done(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Returns the token that is `id` with a space in front.
    fn spaced(&self, id: u32) -> Option<u32> {
        let trie = self.env.tok_trie();
        let bytes = trie.token(id);
        (!bytes.is_empty()).then(|| trie.token_id_at_bytes(&[b" ", bytes].concat())).flatten()
    }

    fn unspaced(&self, id: u32) -> u32 {
        let trie = self.env.tok_trie();
        trie.token(id).strip_prefix(b" ").and_then(|bytes| trie.token_id_at_bytes(bytes)).unwrap_or(id)
    }

    /// Goes on by the text that the answer begins with, however the model reads it.
    fn read(&mut self, prefix: &str) -> Result<()> {
        let trie = self.env.tok_trie();
        let ids = trie.greedy_tokenize(prefix.as_bytes());
        let known = trie.decode(&ids) == prefix.as_bytes();
        if !known || self.matcher.validate_tokens(&ids).map_err(|e| refused(self.name, e))? < ids.len() {
            return invalid!("prefix={prefix:?}: no answer that begins so keeps to the {}", self.name);
        }
        self.matcher.consume_tokens(&ids).map_err(|e| refused(self.name, e))
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint")
            .field("name", &self.name)
            .field("trim_start", &self.trim_start)
            .finish_non_exhaustive()
    }
}

#[allow(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn refused(name: &str, error: impl ToString) -> Error {
    Error::Invalid(format!("{name}: {}", problem(&error.to_string())))
}

/// Returns the problem in one line, without the state and the backtrace that llguidance writes behind it.
fn problem(error: &str) -> String {
    let end = error.find("\n<").unwrap_or(error.len());
    let line = error[..end].split_whitespace().collect::<Vec<_>>().join(" ");
    if line.starts_with("NoExtension") {
        return "it allows no answer".into();
    }
    // A pattern is quoted in a language that nobody wrote here.
    let line = line.split(" 1 | start: /").next().unwrap_or_default();
    let line = line.split_once(" (in regex): ").map_or(line, |(_, problem)| problem);
    // The options that llguidance goes on to name are none of ours.
    let line = line.split(". Enable '").next().unwrap_or_default();
    match line.char_indices().nth(MAX_PROBLEM) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A vocabulary of bytes and some pieces, which writes a space before the first word, with two end tokens.
    fn tokenizer() -> Tokenizer {
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>", "<end>"].map(Into::into).to_vec();
        tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
        tokens.extend(
            ["{", "▁{", "▁", "▁▁", "{\"", "\"a\"", "▁1", "1", "12", "</s", "}", "true", "▁true", "é"].map(Into::into),
        );
        let vocab: serde_json::Map<_, _> = tokens.iter().zip(0..).map(|(t, id)| (t.clone(), json!(id))).collect();
        let added: Vec<Value> = (1..4)
            .map(|id| {
                json!({"id": id, "content": tokens[id], "special": true, "single_word": false, "lstrip": false,
                       "rstrip": false, "normalized": false})
            })
            .collect();
        let file = json!({
            "version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "unk_token": "<unk>"},
        });
        let inner = tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap();
        Tokenizer::from_json(inner, &json!({"bos_token": "<s>"}), &[&json!({"eos_token_id": [2, 3]})]).unwrap()
    }

    fn start(schema: &Value, prefix: &str, trim_start: bool) -> Result<Constraint> {
        keep(&Form::Schema(schema.to_string()), prefix, trim_start)
    }

    fn keep(form: &Form, prefix: &str, trim_start: bool) -> Result<Constraint> {
        Schemas::default().constraint(form, &tokenizer(), prefix, trim_start)
    }

    /// Returns what may come next, and `!` for each end token.
    fn next(constraint: &mut Constraint) -> Vec<String> {
        let tokenizer = tokenizer();
        let mut logits = vec![1.0; tokenizer.vocab_size()];
        constraint.mask(&mut logits).unwrap();
        let ids = (0..).zip(&logits).filter(|(_, x)| **x > 0.0).map(|(id, _)| id);
        let mut next: Vec<String> =
            ids.map(|id| {
                if tokenizer.is_end(id) { "!".into() } else { String::from_utf8_lossy(tokenizer.bytes(id)).into() }
            })
            .collect();
        next.sort_unstable();
        next
    }

    fn id(bytes: &[u8]) -> u32 {
        let tokenizer = tokenizer();
        (0..tokenizer.vocab_size() as u32).rev().find(|id| tokenizer.bytes(*id) == bytes).unwrap()
    }

    #[test]
    fn every_spelling_is_allowed_and_nothing_else() {
        let mut constraint = start(&json!({"enum": [true, 12]}), "", false).unwrap();
        // A byte token and the piece that is the same byte are both allowed.
        assert_eq!(next(&mut constraint), ["1", "1", "12", "t", "true"]);
        constraint.accept(id(b"1")).unwrap();
        assert_eq!(next(&mut constraint), ["2"]);
        assert!(!constraint.is_done());
        constraint.accept(id(b"2")).unwrap();
        assert!(constraint.is_done());
        assert_eq!(next(&mut constraint), ["!", "!"]);
    }

    #[test]
    fn the_end_is_allowed_where_the_text_is_whole() {
        let mut constraint = start(&json!({"type": "integer", "minimum": 0, "maximum": 20}), "", false).unwrap();
        assert!(!next(&mut constraint).contains(&"!".to_owned()));
        constraint.accept(id(b"1")).unwrap();
        let after = next(&mut constraint);
        assert!(after.contains(&"!".to_owned()) && after.contains(&"0".to_owned()), "{after:?}");
        assert!(!constraint.is_done());
        constraint.accept(2).unwrap();
        assert!(constraint.is_done());
    }

    #[test]
    fn control_tokens_are_never_text() {
        let mut constraint = start(&json!({"const": "</s><end>"}), "\"", false).unwrap();
        assert_eq!(next(&mut constraint), ["<", "</s"]);
        constraint.accept(id(b"</s")).unwrap();
        assert_eq!(next(&mut constraint), [">"]);
    }

    #[test]
    fn a_character_may_come_in_bytes() {
        let mut constraint = start(&json!({"enum": ["é", "è"]}), "\"", false).unwrap();
        assert_eq!(next(&mut constraint), ["é", "\u{fffd}"]);
        constraint.accept(id(&[0xc3])).unwrap();
        assert_eq!(next(&mut constraint).len(), 2);
        constraint.accept(id(&[0xa8])).unwrap();
        assert_eq!(next(&mut constraint), ["\""]);
    }

    #[test]
    fn the_space_of_the_vocabulary_is_no_part_of_the_answer() {
        let schema = json!({"enum": [true, 1]});
        let mut constraint = start(&schema, "", true).unwrap();
        assert_eq!(next(&mut constraint), [" 1", " true", "1", "1", "t", "true"]);
        constraint.accept(id(b" true")).unwrap();
        assert!(constraint.is_done());
        let mut constraint = start(&json!({"const": [1, 1]}), "[", true).unwrap();
        constraint.accept(id(b"1")).unwrap();
        // No more than once.
        assert!(next(&mut constraint).contains(&",".to_owned()));
    }

    #[test]
    fn a_prefix_is_the_answers_beginning() {
        let schema = json!({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"],
                            "additionalProperties": false});
        let mut constraint = start(&schema, "{\"a\":", false).unwrap();
        assert!(next(&mut constraint).contains(&"1".to_owned()));
        assert!(start(&schema, "{\"a\": 1}", false).unwrap().is_done());
        let error = start(&schema, "{\"b", false).unwrap_err().to_string();
        assert_eq!(error, "prefix=\"{\\\"b\": no answer that begins so keeps to the schema");
        assert!(start(&schema, "Sure: {", false).is_err());
    }

    #[test]
    fn a_pattern_is_that_of_the_whole_answer() {
        let pattern = |pattern: &str| keep(&Form::Pattern(pattern.into()), "", false);
        for spelled in ["(true|1{2})", "^(true|1{2})$"] {
            let mut constraint = pattern(spelled).unwrap();
            assert_eq!(next(&mut constraint), ["1", "1", "t", "true"]);
            constraint.accept(id(b"1")).unwrap();
            assert_eq!(next(&mut constraint), ["1", "1"]);
            constraint.accept(id(b"1")).unwrap();
            assert!(constraint.is_done());
        }
        let mut constraint = pattern("1+").unwrap();
        constraint.accept(id(b"1")).unwrap();
        assert_eq!(next(&mut constraint), ["!", "!", "1", "1"]);
        // What delimits a pattern in llguidance's own language, and what begins a comment there.
        for text in ["/", "//", "a/b", "/i", "#", "<</>>", "&&~~--", "a.b", "(?i)[x]{1}|^$*+", "\n\"\\"] {
            let mut constraint = keep(&Form::Choices(vec![text.into()]), "", false).unwrap();
            for byte in text.bytes() {
                constraint.accept(id(&[byte])).unwrap();
            }
            assert!(constraint.is_done(), "{text:?}");
        }
        assert!(pattern("a/b").is_ok());
    }

    #[test]
    fn an_answer_is_one_of_the_choices() {
        let choices = |choices: &[&str]| Form::Choices(choices.iter().map(ToString::to_string).collect());
        let mut constraint = keep(&choices(&["1", "1.*", "true"]), "", true).unwrap();
        assert_eq!(next(&mut constraint), [" 1", " true", "1", "1", "t", "true"]);
        constraint.accept(id(b" 1")).unwrap();
        assert_eq!(next(&mut constraint), ["!", "!", "."]);
        constraint.accept(id(b".")).unwrap();
        assert_eq!(next(&mut constraint), ["*"]);
        constraint.accept(id(b"*")).unwrap();
        assert!(constraint.is_done());
        let error = keep(&choices(&["true"]), "f", false).unwrap_err().to_string();
        assert_eq!(error, "prefix=\"f\": no answer that begins so keeps to the choices");
        assert!(keep(&choices(&["true"]), "true", false).unwrap().is_done());
    }

    #[test]
    fn patterns_and_choices_are_refused_by_name() {
        let refused = |form: Form| keep(&form, "", false).map(|_| ()).unwrap_err().to_string();
        let pattern = |pattern: &str| refused(Form::Pattern(pattern.into()));
        assert_eq!(pattern(""), "pattern: it is empty");
        assert_eq!(pattern("("), "pattern: regex parse error: ( ^ error: unclosed group");
        assert!(pattern("(?=a)b").starts_with("pattern: regex parse error: (?=a)b ^^^ error: look-around, "));
        assert!(pattern(r"(a)\1").ends_with("error: backreferences are not supported"));
        assert_eq!(pattern(r"a\bb"), r"pattern: lookarounds not supported yet; WordUnicode in regex /a\bb/");
        assert_eq!(pattern(r"a\\\"), r"pattern: it ends with a \ that nothing follows");
        assert!(keep(&Form::Pattern(r"1\\".into()), "", false).is_ok());
        assert_eq!(pattern("[^\\x00-\u{10ffff}]"), "pattern: it allows no answer");
        assert_eq!(pattern(&"a".repeat(9000)), "pattern: it has 9000 bytes, at most 8192 are read");
        assert_eq!(refused(Form::Choices(Vec::new())), "choices: there is none");
        assert_eq!(refused(Form::Choices(vec!["a".into(), String::new()])), "choices[1]: an empty text is no answer");
        let long = vec!["a".repeat(MAX_PATTERNS), "b".into()];
        assert_eq!(refused(Form::Choices(long)), "choices: they have 8193 bytes, at most 8192 are read");
        for hostile in ["((((a{1,99}){1,99}){1,99}){1,99}){1,99}", "(a|aa|aaa)*{50}x", "(.*a){40}", "(a?){1000}a{1000}"]
        {
            let _ = keep(&Form::Pattern(hostile.into()), "", false);
        }
    }

    #[test]
    fn white_space_has_an_end() {
        let mut constraint = start(&json!({"type": "array"}), "[", false).unwrap();
        for _ in 0..64 {
            constraint.accept(id(b" ")).unwrap();
        }
        let next = next(&mut constraint);
        assert!(!next.contains(&" ".to_owned()) && next.contains(&"]".to_owned()), "{next:?}");
    }

    #[test]
    fn hostile_schemas_are_refused_by_name() {
        let chain = |n: usize, wrap: &dyn Fn(Value) -> Value| {
            let refer = |i: usize| json!({"$ref": format!("#/$defs/{i}")});
            let mut defs: serde_json::Map<_, _> = (0..n).map(|i| (i.to_string(), wrap(refer(i + 1)))).collect();
            defs.insert(n.to_string(), json!({"type": "null"}));
            json!({"$ref": "#/$defs/0", "$defs": defs})
        };
        let refused = |schema: &Value| start(schema, "", false).map(|_| ()).unwrap_err().to_string();
        assert!(start(&chain(2000, &|schema| schema), "", false).is_ok());
        let deep = chain(2500, &|schema| json!({"properties": {"a": {"items": schema}}}));
        assert_eq!(refused(&deep), "schema: it nests 10007 levels with its references followed, at most 8000 are read");
        let long = json!({"enum": ["x".repeat(MAX_SCHEMA)]});
        assert_eq!(refused(&long), "schema: it has 262157 bytes of JSON, at most 262144 are read");
        let many = json!({"pattern": "a?".repeat(2000), "patternProperties": {"b?".repeat(2100): true}});
        assert_eq!(refused(&many), "schema: its patterns have 8200 bytes, at most 8192 are read");
        assert_eq!(refused(&json!({"$ref": "#"})), "schema: it allows no answer");
        assert_eq!(
            refused(&json!({"pattern": "(", "type": "string"})),
            "schema: regex parse error: ( ^ error: unclosed group"
        );
        let long = refused(&json!({"pattern": "(".repeat(8000), "type": "string"}));
        assert!(long.starts_with("schema: regex parse error: ((((") && long.chars().count() < 320, "{long}");
        assert_eq!(refused(&json!([])), "schema: expected a JSON object such as {\"type\": \"object\"}");
        let remote = refused(&json!({"$ref": "http://127.0.0.1:9/schema.json"}));
        assert!(remote.starts_with("schema: Resource 'http://127.0.0.1:9/schema.json' is not present"), "{remote}");
    }

    #[test]
    fn the_deepest_schema_that_is_read_fits_the_stack() {
        for wrap in ["items", "additionalProperties", "properties", "allOf", "anyOf"] {
            let levels = if matches!(wrap, "items" | "additionalProperties") { 2 } else { 3 };
            let n = (MAX_DEPTH - 10) / levels;
            let mut defs = serde_json::Map::new();
            for i in 0..n {
                let next = json!({"$ref": format!("#/$defs/{}", i + 1)});
                let next = match wrap {
                    "properties" => json!({"a": next}),
                    "allOf" | "anyOf" => json!([next]),
                    _ => next,
                };
                defs.insert(i.to_string(), json!({wrap: next}));
            }
            defs.insert(n.to_string(), json!({"type": "null"}));
            let result = start(&json!({"$ref": "#/$defs/0", "$defs": defs}), "", false);
            assert!(result.is_ok() || !result.unwrap_err().to_string().contains("nests"), "{wrap}");
        }
    }
}
