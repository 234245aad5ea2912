//! `ColBERT` indexes that clients make, fill and search.
//!
//! A change is a job: the response is that it waits for its turn, and `GET /jobs/{id}` tells what became of it.

use super::answering::within;
use super::problem::{ErrorBody, Problem};
use super::{App, check_length};
use crate::indexes::{Change, Document, IndexName, Indexes, Job, Refusal};
use crate::options::MAX_K;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Json, Path, Query};
use actix_web::{HttpResponse, Result as Response};
use adventures::Error;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// The longest id of a document, in bytes.
const MAX_ID: usize = 1_024;
/// How many documents a search returns where it does not say.
const K: usize = 10;

/// A document to be found.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewDocument {
    /// Unlike all others of the index.
    #[schema(min_length = 1)]
    id: String,
    /// What is searched.
    #[schema(min_length = 1)]
    text: String,
    /// Whatever is to come with it.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
}

/// An index to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateIndex {
    /// `a`–`z`, digits, `_` and `-`, the first of them a letter or digit, 63 at most.
    index_name: String,
    /// What it begins with.
    documents: Vec<NewDocument>,
    /// Bits of a dimension of a token's vector: 1, 2 or 4; 32 keeps the vectors as they are [default: 4]
    nbits: Option<usize>,
}

/// Documents to be added.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AddDocuments {
    /// The documents.
    documents: Vec<NewDocument>,
    /// Whether they take the place of those that have their ids; otherwise there must be none [default: false]
    #[serde(default)]
    upsert: bool,
}

/// Documents to be deleted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteDocuments {
    /// Their ids; where one is not in the index, none is deleted.
    document_ids: Vec<String>,
}

/// A change that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Accepted {
    /// For people.
    message: String,
    /// Where the index is, on the service's machine.
    index_path: String,
    /// How many documents the change is about.
    documents: usize,
    /// What to ask `/jobs/{id}` for.
    job: Job,
}

/// An index.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IndexDescription {
    index_name: String,
    /// Documents that can be found.
    documents: usize,
    /// Tokens, those of deleted documents included.
    tokens: usize,
    /// Dimensions of a token's vector.
    dim: usize,
    /// Bits of a dimension.
    nbits: usize,
    /// On disk.
    bytes: u64,
    /// Commits so far.
    generation: u64,
}

/// All indexes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IndexList {
    /// What the model that reads for them is called.
    model: String,
    /// How many tokens of a document are read.
    max_tokens: usize,
    /// In the order of their names.
    indexes: Vec<IndexDescription>,
    /// Those that cannot be read, and why.
    broken: Map<String, Value>,
}

/// Which index is searched.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Its name.
    index_name: String,
}

/// A question to an index.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct IndexQuery {
    /// The question.
    text: String,
    /// How many documents at most [default: 10]
    #[schema(minimum = 1, maximum = 100)]
    k: Option<usize>,
    /// Only these may be found [default: all may be]
    document_ids: Option<Vec<String>>,
}

/// What was found.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IndexAnswer {
    /// Best first.
    answer: Vec<IndexHit>,
    /// Whether the question was longer than the model reads: nothing was looked for by its end.
    truncated: bool,
}

/// A document that was found.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IndexHit {
    /// Its text; absent where the index was made of vectors alone.
    content: Option<String>,
    /// The sum, over the question's tokens, of the largest product with a token of the document.
    score: f32,
    /// 1 is the best.
    rank: usize,
    document_id: String,
    /// What it came with.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Value>,
}

/// All changes that are remembered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobList {
    /// The oldest first.
    jobs: Vec<Job>,
}

fn indexes(app: &App) -> Result<&Arc<Indexes>, Problem> {
    let missing = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            "no_indexes",
            "this service has no folder of indexes; start it with --indexes",
        )
    };
    app.service()?.indexes.as_ref().ok_or_else(missing)
}

fn named(name: &str) -> Result<IndexName, Problem> {
    IndexName::try_from(name).map_err(|problem| Problem::invalid("index_name", problem.to_string()))
}

fn no_index(name: &IndexName) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no_index", format!("there is no index {:?}", name.to_string()))
}

/// Checks documents, as far as they can be without the index.
fn checked(documents: Vec<NewDocument>) -> Result<Vec<Document>, Problem> {
    let mut ids = HashSet::with_capacity(documents.len());
    for (i, NewDocument { id, text, .. }) in documents.iter().enumerate() {
        let wrong = |what: &str, message: String| Err(Problem::invalid(&format!("documents[{i}].{what}"), message));
        if id.is_empty() || id.len() > MAX_ID {
            return wrong("id", format!("documents[{i}].id has {} bytes; 1 to {MAX_ID} are taken", id.len()));
        }
        if !ids.insert(id.as_str()) {
            return wrong("id", format!("documents[{i}].id {:?} is given twice", shown(id)));
        }
        if text.trim().is_empty() {
            return wrong("text", format!("documents[{i}].text is empty"));
        }
    }
    let written = |document: NewDocument| {
        let metadata = document.metadata.map(|metadata| Value::Object(metadata).to_string());
        Document { id: document.id, text: document.text, metadata }
    };
    Ok(documents.into_iter().map(written).collect())
}

fn shown(id: &str) -> String {
    id.chars().take(100).collect()
}

/// Lets a change wait for its turn, and tells so.
fn accept(app: &App, name: &IndexName, change: Change) -> Response<HttpResponse> {
    let indexes = indexes(app)?;
    let job = indexes.change(name, change).map_err(|refusal| match refusal {
        Refusal::Exists => {
            let message =
                format!("there is an index {:?} already; add documents to it, or delete it", name.to_string());
            Problem::new(StatusCode::CONFLICT, "index_exists", message)
        }
        Refusal::Missing => no_index(name),
        Refusal::Full => Problem::busy("too many changes of indexes are waiting", Duration::from_secs(5)),
    })?;
    let message = format!("GET /jobs/{} tells how far it is", job.id);
    let index_path = indexes.dir(name).display().to_string();
    Ok(HttpResponse::Accepted().json(Accepted { message, index_path, documents: job.documents, job }))
}

/// Makes an index of documents, in the background.
#[utoipa::path(
    post, path = "/create_index", tag = "indexes", request_body = CreateIndex,
    responses(
        (status = 202, description = "It is being made", body = Accepted),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ),
)]
pub(super) async fn create(app: Data<App>, Json(request): Json<CreateIndex>) -> Response<HttpResponse> {
    let name = named(&request.index_name)?;
    let nbits = request.nbits.unwrap_or(4);
    if !matches!(nbits, 1 | 2 | 4 | 32) {
        return Err(Problem::invalid("nbits", format!("nbits must be 1, 2, 4 or 32, not {nbits}")).into());
    }
    accept(&app, &name, Change::Create(checked(request.documents)?, nbits))
}

/// Finds the documents of an index that are nearest to a question.
#[utoipa::path(
    post, path = "/query", tag = "indexes", params(Which), request_body = IndexQuery,
    responses(
        (status = 200, description = "The documents", body = IndexAnswer),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ),
)]
pub(super) async fn query(
    app: Data<App>,
    which: Query<Which>,
    Json(request): Json<IndexQuery>,
) -> Response<HttpResponse> {
    let indexes = indexes(&app)?;
    let name = named(&which.index_name)?;
    let IndexQuery { text, k, document_ids } = request;
    if text.trim().is_empty() {
        return Err(Problem::invalid("text", "text is empty").into());
    }
    check_length("text", text.len(), indexes.max_tokens())?;
    let k = k.unwrap_or(K);
    if !(1..=MAX_K).contains(&k) {
        return Err(Problem::invalid("k", format!("k must be from 1 to {MAX_K}, not {k}")).into());
    }
    let found = within(&app, indexes.search(&name, text, k, document_ids)).await?;
    let hits = found.hits.into_iter().zip(1..).map(|(hit, rank)| IndexHit {
        content: hit.text,
        score: hit.score,
        rank,
        document_id: hit.id,
        metadata: hit.metadata,
    });
    Ok(HttpResponse::Ok().json(IndexAnswer { answer: hits.collect(), truncated: found.truncated }))
}

async fn described(indexes: &Arc<Indexes>, name: &IndexName) -> Result<IndexDescription, Error> {
    let info = indexes.info(name).await?;
    Ok(IndexDescription {
        index_name: name.to_string(),
        documents: info.documents,
        tokens: info.tokens,
        dim: info.dim,
        nbits: info.nbits,
        bytes: info.bytes,
        generation: info.generation,
    })
}

/// Lists all indexes.
#[utoipa::path(get, path = "/indexes", tag = "indexes", responses(
    (status = 200, description = "The indexes", body = IndexList),
    (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
    (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
))]
pub(super) async fn list(app: Data<App>) -> Response<HttpResponse> {
    let indexes = indexes(&app)?;
    let (mut found, mut broken) = (Vec::new(), Map::new());
    for name in indexes.names().map_err(Problem::from)? {
        match described(indexes, &name).await {
            Ok(description) => found.push(description),
            // It was deleted meanwhile.
            Err(Error::NotFound(_)) => {}
            Err(problem) => drop(broken.insert(name.to_string(), problem.to_string().into())),
        }
    }
    let (model, max_tokens) = (indexes.model().to_owned(), indexes.max_tokens());
    Ok(HttpResponse::Ok().json(IndexList { model, max_tokens, indexes: found, broken }))
}

/// Describes an index.
#[utoipa::path(get, path = "/indexes/{index_name}", tag = "indexes", params(("index_name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The index", body = IndexDescription),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ))]
pub(super) async fn describe(app: Data<App>, name: Path<String>) -> Response<HttpResponse> {
    let (indexes, name) = (indexes(&app)?, named(&name)?);
    Ok(HttpResponse::Ok().json(described(indexes, &name).await.map_err(Problem::from)?))
}

/// Deletes an index, after the changes of it that wait.
#[utoipa::path(delete, path = "/indexes/{index_name}", tag = "indexes", params(("index_name" = String, Path, description = "Its name")),
    responses(
        (status = 202, description = "It is being deleted", body = Accepted),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ))]
pub(super) async fn drop_index(app: Data<App>, name: Path<String>) -> Response<HttpResponse> {
    accept(&app, &named(&name)?, Change::Drop)
}

/// Adds documents to an index, in the background.
#[utoipa::path(
    post, path = "/indexes/{index_name}/documents", tag = "indexes", request_body = AddDocuments,
    params(("index_name" = String, Path, description = "Its name")),
    responses(
        (status = 202, description = "They are being added", body = Accepted),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ),
)]
pub(super) async fn add(
    app: Data<App>,
    name: Path<String>,
    Json(request): Json<AddDocuments>,
) -> Response<HttpResponse> {
    let name = named(&name)?;
    let AddDocuments { documents, upsert } = request;
    if documents.is_empty() {
        return Err(Problem::invalid("documents", "documents is empty").into());
    }
    let documents = checked(documents)?;
    accept(&app, &name, if upsert { Change::Upsert(documents) } else { Change::Add(documents) })
}

/// Deletes documents from an index, in the background.
#[utoipa::path(
    post, path = "/indexes/{index_name}/delete", tag = "indexes", request_body = DeleteDocuments,
    params(("index_name" = String, Path, description = "Its name")),
    responses(
        (status = 202, description = "They are being deleted", body = Accepted),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ),
)]
pub(super) async fn delete(
    app: Data<App>,
    name: Path<String>,
    Json(request): Json<DeleteDocuments>,
) -> Response<HttpResponse> {
    let name = named(&name)?;
    if request.document_ids.is_empty() {
        return Err(Problem::invalid("document_ids", "document_ids is empty").into());
    }
    accept(&app, &name, Change::Delete(request.document_ids))
}

/// Lists the last thousand changes of indexes.
#[utoipa::path(get, path = "/jobs", tag = "indexes", responses(
    (status = 200, description = "The changes", body = JobList),
    (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
    (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
))]
pub(super) async fn jobs(app: Data<App>) -> Response<HttpResponse> {
    Ok(HttpResponse::Ok().json(JobList { jobs: indexes(&app)?.jobs() }))
}

/// Tells how far a change is.
#[utoipa::path(get, path = "/jobs/{id}", tag = "indexes", params(("id" = String, Path, description = "Of the change")),
    responses(
        (status = 200, description = "The change", body = Job),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ))]
pub(super) async fn job(app: Data<App>, id: Path<String>) -> Response<HttpResponse> {
    let missing = || Problem::new(StatusCode::NOT_FOUND, "no_job", format!("there is no job {:?}", shown(&id)));
    Ok(HttpResponse::Ok().json(indexes(&app)?.job(&id).ok_or_else(missing)?))
}
