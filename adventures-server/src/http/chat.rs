//! `POST /v1/chat/completions`: a conversation to an answer, cited where there is a library.

use super::answering::{Counted, within};
use super::keys::Client;
use super::openai::{
    ChatMessage, ResponseFormat, Sampling, StreamOptions, Usage, chat_logprobs, finish_reason, messages,
};
use super::problem::{ErrorBody, Problem};
use super::{App, SearchSettings, check_length, now, sse};
use crate::answer::{Answer, Prepared};
use crate::library::RetrievalKind;
use crate::queue::Place;
use actix_web::web::{Data, Json, ReqData};
use actix_web::{HttpResponse, Result as Response};
use async_stream::try_stream;
use futures_util::Stream;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

/// A conversation to be answered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what changes no answer is read so that it is not refused")]
pub(super) struct ChatRequest {
    /// The model's name, or `default`.
    model: String,
    /// The conversation; the last message is the user's question.
    messages: Vec<ChatMessage>,
    /// Where the answer comes from: `false` for the model alone, settings for a search in the library. By default the
    /// library, where the service has one.
    retrieval: Option<Retrieve>,
    /// Whether the answer comes in pieces, as server-sent events.
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    /// The most tokens of the answer; the service's own limit where that is less.
    #[schema(minimum = 1)]
    max_tokens: Option<u64>,
    /// The same; this one counts.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u64>,
    /// Whether to tell how likely each token was.
    #[serde(default)]
    logprobs: bool,
    /// With how many alternatives, 20 at most.
    #[schema(maximum = 20)]
    top_logprobs: Option<u64>,
    /// A shape that the answer is to have; only without retrieval.
    response_format: Option<ResponseFormat>,
    #[serde(flatten)]
    sampling: Sampling,
    /// This and what follows changes no answer.
    #[schema(value_type = Option<String>)]
    user: Option<IgnoredAny>,
    #[schema(value_type = Option<bool>)]
    store: Option<IgnoredAny>,
    #[schema(value_type = Option<Object>)]
    metadata: Option<IgnoredAny>,
    #[schema(value_type = Option<String>)]
    service_tier: Option<IgnoredAny>,
    #[schema(value_type = Option<bool>)]
    parallel_tool_calls: Option<IgnoredAny>,
    #[schema(value_type = Option<String>)]
    safety_identifier: Option<IgnoredAny>,
    #[schema(value_type = Option<String>)]
    prompt_cache_key: Option<IgnoredAny>,
}

/// Whether and how passages are looked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Retrieve {
    /// Whether at all.
    Whether(bool),
    /// How.
    How(RetrieveSettings),
}

/// How passages are looked for.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RetrieveSettings {
    /// How many.
    #[schema(minimum = 1, maximum = 100)]
    k: Option<usize>,
    /// What finds them; `colbert` where the library was synced with token vectors.
    retrieval: Option<RetrievalKind>,
    /// Whether words count, too.
    hybrid: Option<bool>,
    /// Whether the reranker puts them in order, where the service has one.
    rerank: Option<bool>,
    /// How many passages before and after it in its row each takes in.
    #[schema(maximum = 100)]
    expand: Option<usize>,
    /// Which passages may answer: `{"aisle": "frost", "price": {"lt": 20}}`.
    #[schema(value_type = Option<Object>)]
    r#where: Option<Map<String, Value>>,
    /// The cosine similarity below which a passage is not about the question.
    min_similarity: Option<f32>,
}

/// Answers a conversation.
///
/// With `stream`, a chunk of each event holds a piece of the text. The first chunk, or the body, holds `sources`: the passages
/// that the answer may cite, in the order of their numbers. `[1]` in the text is the first of them. Beside them, `dropped` is
/// how many more were found than the model can read, and `truncated` whether the question was longer than the embedder reads:
/// then no passage was looked for by its end.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events", body = Object),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ),
)]
pub(super) async fn completions(
    app: Data<App>,
    client: ReqData<Client>,
    Json(request): Json<ChatRequest>,
) -> Response<HttpResponse> {
    Ok(answer(app, &client, request).await?)
}

pub(super) async fn answer(app: Data<App>, client: &Client, request: ChatRequest) -> Result<HttpResponse, Problem> {
    let writes = app.writes(Some(&request.model))?;
    let (name, context) = (writes.name.clone(), writes.model.context());
    let service = app.service()?.clone();
    let settings = match request.retrieval {
        None if service.library.is_none() => None,
        None | Some(Retrieve::Whether(true)) => Some(RetrieveSettings::default()),
        Some(Retrieve::Whether(false)) => None,
        Some(Retrieve::How(settings)) => Some(settings),
    };
    let retrieval = match settings {
        None => None,
        Some(_) if service.library.is_none() => {
            return Err(Problem::invalid("retrieval", "this service has no library"));
        }
        Some(RetrieveSettings { k, retrieval, hybrid, rerank, expand, r#where: filter, min_similarity }) => {
            Some(app.retrieval(SearchSettings { k, retrieval, hybrid, rerank, expand, filter, min_similarity })?)
        }
    };
    let max_tokens = request.max_completion_tokens.or(request.max_tokens);
    let mut options = request.sampling.options(max_tokens, app.options.max_tokens)?;
    options.logprobs = match (request.logprobs, request.top_logprobs) {
        (false, Some(1..)) => return Err(Problem::invalid("top_logprobs", "top_logprobs needs logprobs: true")),
        (false, _) => None,
        (true, n) => match n.unwrap_or(0) {
            n @ 0..=20 => Some(n as usize),
            n => return Err(Problem::invalid("top_logprobs", format!("top_logprobs must be from 0 to 20, not {n}"))),
        },
    };
    options.schema = request.response_format.map(ResponseFormat::schema).transpose()?.flatten();
    if options.schema.is_some() && retrieval.is_some() {
        let message = "an answer that cites its sources is text: for JSON send retrieval: false";
        return Err(Problem::invalid("response_format", message));
    }
    let messages = messages(request.messages)?;
    let length: usize = messages.iter().map(|message| message.content.len()).sum();
    check_length("messages", length, context)?;
    let place = app.enter(client)?;
    let prepared = Prepared::new(&service, messages, retrieval.as_ref(), app.options.system.as_deref(), options);
    let prepared = within(&app, prepared).await?;
    let head = Head { id: format!("chatcmpl-{}", Uuid::new_v4().simple()), created: now(), model: name };
    if request.stream {
        let usage = request.stream_options.unwrap_or_default().include_usage;
        let chunks = chunks(app.clone(), prepared, place, head, usage);
        return Ok(sse::response(&app, chunks));
    }
    let whole = whole(&app, prepared, place, &head, request.logprobs);
    Ok(HttpResponse::Ok().json(within(&app, whole).await?))
}

/// What all chunks of an answer have in common.
struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    fn chunk(&self, choices: &Value) -> Value {
        let Self { id, created, model } = self;
        json!({"id": id, "object": "chat.completion.chunk", "created": created, "model": model, "choices": choices})
    }
}

async fn whole(
    app: &App,
    mut prepared: Prepared,
    mut place: Place,
    head: &Head,
    logprobs: bool,
) -> Result<Value, Problem> {
    place.turn().await;
    let mut answer = Counted::new(app, prepared.start().await?);
    let mut text = String::new();
    while let Some(piece) = answer.next().await? {
        text.push_str(&piece);
    }
    let answer = &answer.answer;
    let stats = answer.stats();
    let logprobs = if logprobs { answer.logprobs(0).as_deref().map(chat_logprobs) } else { None };
    let Head { id, created, model } = head;
    Ok(json!({
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": null},
            "logprobs": logprobs,
            "finish_reason": finish_reason(stats.as_ref()),
        }],
        "usage": Usage::of(stats.as_ref()),
        "sources": prepared.sources,
        "citations": answer.cited(),
        "dropped": prepared.dropped,
        "truncated": prepared.truncated,
    }))
}

fn chunks(
    app: Data<App>,
    mut prepared: Prepared,
    mut place: Place,
    head: Head,
    usage: bool,
) -> impl Stream<Item = Result<String, Problem>> {
    try_stream! {
        let choice = |delta: Value, logprobs: Option<Value>, finish: Option<&str>| {
            json!([{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}])
        };
        let event = |chunk: Value| sse::data(&chunk.to_string());
        let mut first = head.chunk(&choice(json!({"role": "assistant", "content": ""}), None, None));
        first["sources"] = json!(prepared.sources);
        first["dropped"] = json!(prepared.dropped);
        first["truncated"] = json!(prepared.truncated);
        yield event(first);
        place.turn().await;
        let mut answer = Counted::new(&app, prepared.start().await?);
        let mut told = 0;
        let mut likely = |answer: &Answer| {
            let new = answer.logprobs(told)?;
            told += new.len();
            Some(chat_logprobs(&new))
        };
        while let Some(piece) = answer.next().await? {
            let logprobs = likely(&answer.answer);
            yield event(head.chunk(&choice(json!({"content": piece}), logprobs, None)));
        }
        let stats = answer.answer.stats();
        let logprobs = likely(&answer.answer);
        let mut last = head.chunk(&choice(json!({}), logprobs, Some(finish_reason(stats.as_ref()))));
        last["citations"] = json!(answer.answer.cited());
        yield event(last);
        if usage {
            let mut counted = head.chunk(&json!([]));
            counted["usage"] = json!(Usage::of(stats.as_ref()));
            yield event(counted);
        }
        yield sse::data("[DONE]");
    }
}
