//! `POST /v1/completions`: the continuation of a text by the model alone.

use super::answering::{Counted, within};
use super::keys::Client;
use super::openai::{Sampling, StreamOptions, Texts, Usage, completion_logprobs, finish_reason};
use super::problem::{ErrorBody, Problem};
use super::{App, check_length, now, sse};
use crate::answer::{Answer, blocking};
use crate::queue::Place;
use crate::service::Service;
use actix_web::web::{Data, Json, ReqData};
use actix_web::{HttpResponse, Result as Response};
use adventures::GenerateOptions;
use async_stream::try_stream;
use futures_util::Stream;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::ToSchema;
use uuid::Uuid;

/// How many tokens are written where a request does not say, as OpenAI has it.
const MAX_TOKENS: u64 = 16;

/// A text to be continued.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what changes no answer is read so that it is not refused")]
pub(super) struct CompletionRequest {
    /// The model's name, or `default`.
    model: String,
    /// The text, or a list of one.
    prompt: Texts,
    /// The most tokens to write [default: 16]
    #[schema(minimum = 1)]
    max_tokens: Option<u64>,
    /// Whether the text comes in pieces, as server-sent events.
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    /// With how many alternatives to tell how likely each token was, 20 at most.
    #[schema(maximum = 20)]
    logprobs: Option<u64>,
    /// Only `false`.
    #[serde(default)]
    echo: bool,
    /// Only 1.
    best_of: Option<u64>,
    #[serde(flatten)]
    sampling: Sampling,
    /// Changes no answer.
    #[schema(value_type = Option<String>)]
    user: Option<IgnoredAny>,
}

/// Continues a text.
#[utoipa::path(
    post, path = "/v1/completions", tag = "openai", request_body = CompletionRequest,
    responses(
        (status = 200, description = "The text; with `stream`, server-sent events", body = Object),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ),
)]
pub(super) async fn completions(
    app: Data<App>,
    client: ReqData<Client>,
    Json(request): Json<CompletionRequest>,
) -> Response<HttpResponse> {
    Ok(answer(app, &client, request).await?)
}

async fn answer(app: Data<App>, client: &Client, request: CompletionRequest) -> Result<HttpResponse, Problem> {
    let writes = app.writes(Some(&request.model))?;
    let (name, context) = (writes.name.clone(), writes.model.context());
    if request.echo {
        return Err(Problem::invalid("echo", "echo must be false"));
    }
    if let Some(n) = request.best_of.filter(|n| *n != 1) {
        return Err(Problem::invalid("best_of", format!("best_of must be 1, not {n}")));
    }
    let mut options =
        request.sampling.options(Some(request.max_tokens.unwrap_or(MAX_TOKENS)), app.options.max_tokens)?;
    options.logprobs = match request.logprobs {
        Some(n @ 0..=20) => Some(n as usize),
        Some(n) => return Err(Problem::invalid("logprobs", format!("logprobs must be from 0 to 20, not {n}"))),
        None => None,
    };
    let mut prompts = request.prompt.into_vec();
    let (Some(prompt), true) = (prompts.pop(), prompts.is_empty()) else {
        return Err(Problem::invalid("prompt", "prompt must be one text"));
    };
    check_length("prompt", prompt.len(), context)?;
    let place = app.enter(client)?;
    let service = app.service()?.clone();
    // What cannot be read is refused before anybody waits for it.
    let tokens = {
        let (service, prompt) = (service.clone(), prompt.clone());
        let count = blocking(move || service.writes()?.model.tokenizer().encode_prompt(&prompt));
        within(&app, count).await?.len()
    };
    if tokens >= context {
        let message =
            format!("the prompt has {tokens} tokens; this model reads {context} of prompt and answer together");
        return Err(Problem::invalid("prompt", message));
    }
    let task = Task { service, prompt, options, place };
    let head = Head { id: format!("cmpl-{}", Uuid::new_v4().simple()), created: now(), model: name };
    if request.stream {
        let usage = request.stream_options.unwrap_or_default().include_usage;
        return Ok(sse::response(&app, chunks(app.clone(), task, head, usage)));
    }
    let whole = whole(&app, task, &head);
    Ok(HttpResponse::Ok().json(within(&app, whole).await?))
}

struct Task {
    service: Arc<Service>,
    prompt: String,
    options: GenerateOptions,
    place: Place,
}

impl Task {
    async fn start(self) -> Result<(Answer, Place), Problem> {
        let Self { service, prompt, options, mut place } = self;
        place.turn().await;
        let generation = blocking(move || service.writes()?.model.complete(&prompt, options)).await?;
        Ok((Answer::of(generation), place))
    }
}

struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    fn body(&self, text: &str, logprobs: Option<&Value>, finish: Option<&str>) -> Value {
        let Self { id, created, model } = self;
        let choice = json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish});
        json!({"id": id, "object": "text_completion", "created": created, "model": model, "choices": [choice]})
    }
}

async fn whole(app: &App, task: Task, head: &Head) -> Result<Value, Problem> {
    let (answer, _place) = task.start().await?;
    let mut answer = Counted::new(app, answer);
    let mut text = String::new();
    while let Some(piece) = answer.next().await? {
        text.push_str(&piece);
    }
    let stats = answer.answer.stats();
    let logprobs = answer.answer.logprobs(0).map(|tokens| completion_logprobs(&tokens, 0));
    let mut body = head.body(&text, logprobs.as_ref(), Some(finish_reason(stats.as_ref())));
    body["usage"] = json!(Usage::of(stats.as_ref()));
    Ok(body)
}

fn chunks(app: Data<App>, task: Task, head: Head, usage: bool) -> impl Stream<Item = Result<String, Problem>> {
    try_stream! {
        let (answer, _place) = task.start().await?;
        let mut answer = Counted::new(&app, answer);
        let (mut told, mut characters) = (0, 0);
        let mut likely = |answer: &Answer, text: &str| {
            let new = answer.logprobs(told)?;
            let logprobs = completion_logprobs(&new, characters);
            told += new.len();
            characters += text.chars().count();
            Some(logprobs)
        };
        while let Some(piece) = answer.next().await? {
            let logprobs = likely(&answer.answer, &piece);
            yield sse::data(&head.body(&piece, logprobs.as_ref(), None).to_string());
        }
        let stats = answer.answer.stats();
        let logprobs = likely(&answer.answer, "");
        yield sse::data(&head.body("", logprobs.as_ref(), Some(finish_reason(stats.as_ref()))).to_string());
        if usage {
            let mut counted = head.body("", None, None);
            counted["choices"] = json!([]);
            counted["usage"] = json!(Usage::of(stats.as_ref()));
            yield sse::data(&counted.to_string());
        }
        yield sse::data("[DONE]");
    }
}
