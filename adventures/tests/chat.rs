//! A cited answer without Python: a profile, a prompt that fits, a real model's stream and what of it may be read.

mod common;

use adventures::{
    CitationFilter, GenerateOptions, Generator, GeneratorOptions, Next, Profile, Prompt, PromptRequest, Turn,
};
use serde_json::json;
use std::time::Duration;

#[test]
fn a_small_model_cites_the_passage_that_it_was_given() {
    let model = json!({"model": "smollm2-135m-instruct", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"});
    let Some(path) = common::file(&model) else { return };
    let load = |context| {
        let options = GeneratorOptions { context, threads: Some(2), ..GeneratorOptions::default() };
        Generator::load(&path, &options).unwrap()
    };
    let generator = load(None);
    let table = json!({
        "passages": 1,
        "history": 1,
        "prefix": "[1]",
        "instruction": "Answer the question in the words of the passage.",
        "user": "Question: {question}\n\n{passages}",
    });
    let profile = Profile::read("smollm2", &table).unwrap();
    let history = [Turn { question: "And a cave?".into(), answer: "[1] A lamp.".into() }];
    let passages = ["For a deep well you should use the Long Rope [7]. It is forty metres long.", "A lamp shines."];
    let question = "What do I use for a deep well?";
    let request = PromptRequest { question, passages: &passages, history: &history, ..PromptRequest::default() };
    let (prompt, read) = Prompt::build(&generator, &profile, &request).unwrap();
    assert_eq!((prompt.messages.len(), prompt.passages, prompt.dropped), (4, 1, 0));

    let (alone, _) = Prompt::build(&generator, &profile, &PromptRequest { history: &[], ..request }).unwrap();
    let options = GenerateOptions { max_tokens: 48, prefix: profile.prefix.clone(), ..GenerateOptions::default() };
    let mut generation = generator.generate(&alone.messages, options).unwrap();
    let (mut filter, mut text) = (CitationFilter::new(alone.passages).always(), String::new());
    while let Next::Piece(piece) = generation.next(Duration::from_secs(60)).unwrap() {
        text += &filter.feed(&piece);
    }
    text += &filter.finish();
    assert!(text.starts_with("[1]") && text.contains("Long Rope"), "{text:?}");
    assert_eq!(filter.cited(), [1]);

    // Too small for the turn before, then for the question.
    let tokens = |prompt: &Prompt| generator.prompt(&prompt.messages, &profile.prefix).unwrap().len();
    let (whole, least) = (tokens(&prompt), tokens(&alone));
    assert_eq!(read, generator.prompt(&prompt.messages, &profile.prefix).unwrap());
    assert!(least < whole);
    let request = PromptRequest { reserve: 8, ..request };
    assert_eq!(Prompt::build(&load(Some(whole + 8)), &profile, &request).unwrap(), (prompt.clone(), read));
    let cut = Prompt::build(&load(Some(whole + 7)), &profile, &request).unwrap();
    assert_eq!((cut.0, cut.1.len()), (alone, least));
    let context = least + 7;
    let error = Prompt::build(&load(Some(context)), &profile, &request).unwrap_err().to_string();
    let want = format!(
        "the question with its best passage is {least} tokens long; smollm2 has room for {} of its context of {context}",
        least - 1
    );
    assert_eq!(error, want);
}
