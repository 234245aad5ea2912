//! `POST /chat` and `POST /embed`: the routes of the project's first prototype, kept for its users.

use super::answering::{Counted, within};
use super::embeddings::check_texts;
use super::keys::Client;
use super::problem::{ErrorBody, Problem};
use super::{App, SearchSettings, check_length, sse};
use crate::answer::Prepared;
use actix_web::web::{Data, Json, ReqData};
use actix_web::{HttpResponse, Result as Response};
use adventures::{GenerateOptions, Kind, Message, Role};
use async_stream::try_stream;
use serde::Deserialize;
use utoipa::ToSchema;

/// A question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    /// The question.
    prompt: String,
}

/// Texts to be embedded.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TextList {
    /// The texts, 2,048 at most.
    text_list: Vec<String>,
}

/// Answers a question as server-sent events, each of whose data is a piece of the text.
///
/// An event `error` is the last of an answer that failed, an event `done` of one that is whole.
#[utoipa::path(
    post, path = "/chat", tag = "prototype", request_body = Question,
    responses(
        (status = 200, description = "The answer", body = String, content_type = "text/event-stream"),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ),
)]
pub(super) async fn chat(
    app: Data<App>,
    client: ReqData<Client>,
    Json(Question { prompt }): Json<Question>,
) -> Response<HttpResponse> {
    let context = app.writes(None)?.model.context();
    let service = app.service()?.clone();
    if prompt.trim().is_empty() {
        return Err(Problem::invalid("prompt", "prompt is empty").into());
    }
    check_length("prompt", prompt.len(), context)?;
    let retrieval = service.library.as_ref().map(|_| app.retrieval(SearchSettings::default())).transpose()?;
    let mut place = app.enter(&client)?;
    let options = GenerateOptions { max_tokens: app.options.max_tokens, ..GenerateOptions::default() };
    let messages = vec![Message::new(Role::User, prompt)];
    let prepared = Prepared::new(&service, messages, retrieval.as_ref(), app.options.system.as_deref(), options);
    let mut prepared = within(&app, prepared).await?;
    let shared = app.clone();
    let events = try_stream! {
        place.turn().await;
        let mut answer = Counted::new(&shared, prepared.start().await?);
        while let Some(piece) = answer.next().await? {
            yield sse::data(&piece);
        }
        yield format!("event: done\n{}", sse::data(""));
    };
    Ok(sse::response(&app, events))
}

/// Embeds texts; returns a list of vectors.
#[utoipa::path(
    post, path = "/embed", tag = "prototype", request_body = TextList,
    responses(
        (status = 200, description = "The vectors", body = Vec<Vec<f32>>),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ),
)]
pub(super) async fn embed(app: Data<App>, Json(TextList { text_list }): Json<TextList>) -> Response<HttpResponse> {
    let embedder = &app.service()?.embedder;
    check_texts("text_list", &text_list)?;
    let found = within(&app, embedder.batches.embed(text_list, Kind::Passage)).await?;
    Ok(HttpResponse::Ok().json(found.vectors.chunks_exact(embedder.dim).collect::<Vec<_>>()))
}
