//! A question with its history to an answer with its sources.

use crate::library::{Hit, Query, RetrievalKind, Snapshot};
use crate::service::{Reranks, Service};
use adventures::{
    CitationFilter, Error, GenerateOptions, Generation, GenerationStats, Kind, Message, NOT_FOUND, Prompt,
    PromptRequest, Result, Role, TokenLogprob, TokenVectors, Turn, leans,
};
use serde_json::{Map, Value};
use std::future::poll_fn;
use std::sync::Arc;
use tracing::{Instrument, debug_span};

/// How passages are looked for.
#[derive(Debug, Clone)]
pub struct Retrieval {
    /// How many.
    pub k: usize,
    /// What finds them.
    pub kind: RetrievalKind,
    /// Whether full-text search takes part.
    pub hybrid: bool,
    /// Whether the reranker, where there is one, puts them in order.
    pub rerank: bool,
    /// How many before and after it in its row each takes in.
    pub expand: usize,
    /// Which may answer.
    pub filter: Map<String, Value>,
    /// The cosine similarity below which one is not about the question.
    pub min_similarity: f32,
}

/// What the model will read, and from which passages.
#[derive(Debug)]
pub struct Prepared {
    service: Arc<Service>,
    /// The hits that the model is given, in the order of their numbers.
    pub sources: Vec<Hit>,
    /// How many relevant hits did not fit into the context.
    pub dropped: usize,
    /// Whether the question was longer than the embedder reads.
    pub truncated: bool,
    /// `None` where the library holds nothing on the question: then no model runs.
    prompt: Option<Reads>,
}

#[derive(Debug)]
struct Reads {
    tokens: Vec<u32>,
    options: GenerateOptions,
    filter: Option<CitationFilter>,
}

/// A running answer.
#[derive(Debug)]
pub struct Answer {
    generation: Option<Generation>,
    filter: Option<CitationFilter>,
    over: bool,
}

/// What a search has found.
#[derive(Debug)]
pub struct Found {
    /// The passages nearest to the question, best first.
    pub hits: Vec<Hit>,
    /// Whether the question was longer than the embedder reads: its end was not looked for.
    pub truncated: bool,
    /// The ids of the hits of which the reranker read the beginning only.
    pub cut: Vec<String>,
}

/// The vectors of a question's tokens, where those of a version can be compared with them.
async fn tokens(service: &Service, snapshot: &Snapshot, question: &str) -> Result<TokenVectors> {
    let late = snapshot.late()?;
    let Some(colbert) = &service.colbert else {
        let message = "this service has no model of the library's token vectors; it is named with --colbert";
        return Err(Error::Invalid(message.into()));
    };
    // A sync may have made them anew by another model.
    if let Err(problem) = late.made.check(&colbert.name, &colbert.revision, colbert.model.dim()) {
        return Err(Error::io("start the service anew", std::io::Error::other(problem)));
    }
    colbert.question(question.to_owned()).await
}

/// How many hits a reranker is shown to choose `k` of; the Python package has the same.
fn depth(k: usize) -> usize {
    (5 * k).max(50)
}

/// Returns the passages nearest to a question.
pub async fn search(service: &Service, question: &str, retrieval: &Retrieval) -> Result<Found> {
    let Some(library) = &service.library else {
        return Err(Error::NotFound("this service has no library".into()));
    };
    if question.trim().is_empty() {
        return Err(Error::Invalid("the question is empty".into()));
    }
    let found = service.embedder.batches.embed(vec![question.to_owned()], Kind::Query).await?;
    let Retrieval { k, kind, hybrid, rerank, expand, ref filter, .. } = *retrieval;
    let snapshot = library.snapshot();
    let tokens = match kind {
        RetrievalKind::Dense => None,
        RetrievalKind::Colbert => Some(Arc::new(tokens(service, &snapshot, question).await?)),
    };
    let truncated = !found.truncated.is_empty() || tokens.as_ref().is_some_and(|read| !read.truncated.is_empty());
    let reranker = service.reranker.as_ref().filter(|_| rerank);
    let wanted = if reranker.is_some() { depth(k) } else { k };
    let (text, filter) = (question.to_owned(), filter.clone());
    let query = Query { text, vector: found.vectors, tokens, k: wanted, hybrid, filter };
    let mut hits =
        library.search(Arc::clone(&snapshot), query).instrument(debug_span!("search", k = wanted, hybrid)).await?;
    let mut cut = Vec::new();
    if let Some(Reranks { model, .. }) = reranker {
        let texts = hits.iter().map(|hit| hit.text.clone()).collect();
        let scores = model.compare(question, texts).await?;
        cut = scores.truncated.iter().map(|&i| hits[i].id.clone()).collect();
        for (hit, score) in hits.iter_mut().zip(scores.scores) {
            hit.score = f64::from(score);
        }
        // Of equals the one found first stays first.
        hits.sort_by(|a, b| b.score.total_cmp(&a.score));
        hits.truncate(k);
    }
    if expand > 0 {
        hits = library.expanded(snapshot, hits, expand).instrument(debug_span!("expand", n = expand)).await?;
        cut.retain(|id| hits.iter().any(|hit| hit.id == *id));
    }
    Ok(Found { hits, truncated, cut })
}

impl Prepared {
    /// Searches and builds the prompt of a conversation whose last message is the question. Without `retrieval` the model
    /// reads the conversation as it is.
    pub async fn new(
        service: &Arc<Service>,
        messages: Vec<Message>,
        retrieval: Option<&Retrieval>,
        system: Option<&str>,
        options: GenerateOptions,
    ) -> Result<Self> {
        let Some(last) = messages.last().filter(|message| message.role == Role::User) else {
            return Err(Error::Invalid("messages: the last must be the user's".into()));
        };
        service.writes()?.model.check(&options)?;
        let Some(retrieval) = retrieval else {
            let mut messages = messages;
            if let Some(system) = system
                && messages[0].role != Role::System
            {
                messages.insert(0, Message::new(Role::System, system));
            }
            let shared = Arc::clone(service);
            return blocking(move || Self::plain(shared, &messages, options)).instrument(debug_span!("prompt")).await;
        };
        let question = last.content.clone();
        let conversation = Conversation::of(&messages[..messages.len() - 1]);
        let asked = match &conversation.topic {
            Some(topic) if leans(&question) => format!("{topic} {question}"),
            _ => question.clone(),
        };
        let Found { hits: mut sources, truncated, .. } = search(service, &asked, retrieval).await?;
        sources.retain(|hit| hit.similarity >= retrieval.min_similarity);
        if sources.is_empty() {
            return Ok(Self { service: Arc::clone(service), sources, dropped: 0, truncated, prompt: None });
        }
        let shared = Arc::clone(service);
        let system = conversation.system.or_else(|| system.map(str::to_owned));
        blocking(move || {
            let writes = shared.writes()?;
            let passages: Vec<&str> = sources.iter().map(|hit| hit.text.as_str()).collect();
            let request = PromptRequest {
                question: &question,
                passages: &passages,
                history: &conversation.turns,
                system: system.as_deref(),
                reserve: options.max_tokens,
            };
            let (prompt, tokens) = Prompt::build(&writes.model, &writes.profile, &request)?;
            let Prompt { passages, dropped, .. } = prompt;
            sources.truncate(passages);
            let filter = CitationFilter::new(sources.len());
            let filter = if writes.profile.passages == Some(1) { filter.always() } else { filter };
            let options = GenerateOptions { prefix: writes.profile.prefix.clone(), ..options };
            let prompt = Some(Reads { tokens, options, filter: Some(filter) });
            Ok(Self { service: Arc::clone(&shared), sources, dropped, truncated, prompt })
        })
        .instrument(debug_span!("prompt"))
        .await
    }

    /// The conversation as it is; one that the model cannot read is refused before anybody waits for it.
    fn plain(service: Arc<Service>, messages: &[Message], options: GenerateOptions) -> Result<Self> {
        let model = &service.writes()?.model;
        let tokens = model.prompt(messages, &options.prefix)?;
        if tokens.len() >= model.context() {
            return Err(Error::Invalid(format!(
                "the messages have {} tokens; this model reads {} of prompt and answer together",
                tokens.len(),
                model.context()
            )));
        }
        let prompt = Some(Reads { tokens, options, filter: None });
        Ok(Self { service, sources: Vec::new(), dropped: 0, truncated: false, prompt })
    }

    /// Starts the model.
    pub async fn start(&mut self) -> Result<Answer> {
        let Some(Reads { tokens, options, filter }) = self.prompt.take() else {
            return Ok(Answer { generation: None, filter: None, over: false });
        };
        let service = Arc::clone(&self.service);
        let generation = blocking(move || service.writes()?.model.answer(tokens, options)).await?;
        Ok(Answer { generation: Some(generation), filter, over: false })
    }
}

impl Answer {
    /// The continuation of a text, without template, library or citations.
    pub fn of(generation: Generation) -> Self {
        Self { generation: Some(generation), filter: None, over: false }
    }

    /// Returns more text; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<String>> {
        while !self.over {
            let Some(generation) = &mut self.generation else {
                self.over = true;
                return Ok(Some(NOT_FOUND.into()));
            };
            let piece = poll_fn(|context| generation.poll_next(context)).await.transpose();
            let text = match (piece.inspect_err(|_| self.over = true)?, &mut self.filter) {
                (Some(piece), None) => piece,
                (Some(piece), Some(filter)) => filter.feed(&piece),
                (None, filter) => {
                    self.over = true;
                    filter.as_mut().map(CitationFilter::finish).unwrap_or_default()
                }
            };
            if !text.is_empty() {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    /// The numbers of the sources that were cited so far.
    pub fn cited(&self) -> &[usize] {
        self.filter.as_ref().map_or(&[], CitationFilter::cited)
    }

    /// What the model has done; `None` where none ran.
    pub fn stats(&self) -> Option<GenerationStats> {
        self.generation.as_ref().map(Generation::stats)
    }

    /// How likely each token was, but the first `skip`; `None` where nobody asked.
    pub fn logprobs(&self, skip: usize) -> Option<Vec<TokenLogprob>> {
        self.generation.as_ref().and_then(|generation| generation.logprobs(skip))
    }
}

/// The messages before a question.
struct Conversation {
    system: Option<String>,
    turns: Vec<Turn>,
    /// The last question that is understood without the one before it.
    topic: Option<String>,
}

impl Conversation {
    fn of(messages: &[Message]) -> Self {
        let said = |role| messages.iter().filter(move |m| m.role == role).map(|m| m.content.as_str());
        let system = said(Role::System).collect::<Vec<_>>().join("\n\n");
        let answered = messages.windows(2).filter(|pair| (pair[0].role, pair[1].role) == (Role::User, Role::Assistant));
        let turn = |pair: &[Message]| Turn { question: pair[0].content.clone(), answer: pair[1].content.clone() };
        let topic = said(Role::User).fold(None, |topic: Option<&str>, question| match topic {
            Some(topic) if leans(question) => Some(topic),
            _ => Some(question),
        });
        let topic = topic.filter(|topic| !topic.trim().is_empty()).map(str::to_owned);
        Self { system: (!system.is_empty()).then_some(system), turns: answered.map(turn).collect(), topic }
    }
}

/// Runs what computes for a while on a thread where nobody waits for it.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|problem| Err(Error::Busy(format!("the work was stopped: {problem}"))))
}
