//! What is served: models and a library, loaded in the background.

use crate::colbert::Colbert;
use crate::embedding::Embedding;
use crate::indexes::Indexes;
use crate::library::{Late, Library, Model, RetrievalKind, Snapshot};
use crate::models::{self, Located};
use crate::options::Options;
use crate::reranking::Reranking;
use adventures::{Embedder, EmbedderOptions, Generator, GeneratorOptions, Kind, Precision, Profile};
use anyhow::{Context, Error, Result};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::runtime::Handle;

/// The embedder of a service without a library and without `--embedder`.
const EMBEDDER: &str = "all-minilm-l6-v2";
/// What reads for indexes of a service without `--colbert`.
const COLBERT: &str = "answerai-colbert-small-v1";

/// All that answers need.
#[derive(Debug)]
pub struct Service {
    /// What embeds.
    pub embedder: Embeds,
    /// What writes; `None` where nothing is to be written.
    pub generator: Option<Writes>,
    /// What puts hits in order; `None` where their similarity does.
    pub reranker: Option<Reranks>,
    /// What reads questions to the library's token vectors; `None` where they cannot be asked.
    pub colbert: Option<Arc<Colbert>>,
    /// What clients index and search; `None` where they cannot.
    pub indexes: Option<Arc<Indexes>>,
    /// What is searched; `None` where the model answers from itself.
    pub library: Option<Library>,
    /// The cosine similarity below which a passage is not about a question.
    pub min_similarity: f32,
}

/// A model that embeds.
#[derive(Debug)]
pub struct Embeds {
    /// What it is called.
    pub name: String,
    /// The length of a vector.
    pub dim: usize,
    /// How many tokens of a text it reads.
    pub max_tokens: usize,
    /// Where texts are sent to.
    pub batches: Embedding,
}

/// A model that reranks.
#[derive(Debug)]
pub struct Reranks {
    /// What it is called.
    pub name: String,
    /// The model.
    pub model: Reranking,
}

/// A model that writes.
pub struct Writes {
    /// What it is called.
    pub name: String,
    /// How it is prompted.
    pub profile: Profile,
    /// The model.
    pub model: Generator,
}

impl std::fmt::Debug for Writes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writes").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Service {
    /// Returns the model that writes.
    pub fn writes(&self) -> adventures::Result<&Writes> {
        let missing = || adventures::Error::NotFound("this service has no model that writes".into());
        self.generator.as_ref().ok_or_else(missing)
    }

    /// Returns the models that `load` will look for, as their names are to be pulled.
    pub async fn needs(options: &Options, runtime: Handle) -> Result<Vec<String>> {
        let snapshot = open_library(options, runtime).await?.as_ref().map(Library::snapshot);
        let mut names = vec![embedder_recipe(options, snapshot.as_deref()).0];
        names.extend(options.generator.clone());
        names.extend(options.reranker.clone());
        names.extend(options.colbert.clone());
        if options.indexes.is_some() && options.colbert.is_none() {
            names.push(COLBERT.into());
        }
        if options.retrieval == RetrievalKind::Colbert
            && let Some(late) = snapshot.as_ref().and_then(|snapshot| snapshot.late().ok())
            && named_for(late, options).is_none()
        {
            names.push(late.recipe().0);
        }
        Ok(names)
    }

    /// Loads models and library, side by side.
    pub async fn load(options: &Options, runtime: Handle) -> Result<Self> {
        let writes = options.generator.clone().map(|spec| {
            let options = options.clone();
            runtime.spawn_blocking(move || Writes::load(&spec, &options))
        });
        let reranks = options.reranker.clone().map(|spec| {
            let threads = options.threads;
            runtime.spawn_blocking(move || Reranks::load(&spec, threads))
        });
        let library = open_library(options, runtime.clone()).await?;
        let tokens = {
            let (options, snapshot, handle) =
                (options.clone(), library.as_ref().map(Library::snapshot), runtime.clone());
            runtime.spawn_blocking(move || {
                let colbert = load_colbert(&options, snapshot.as_deref())?;
                let indexes = load_indexes(&options, colbert.as_ref(), handle)?;
                anyhow::Ok((colbert, indexes))
            })
        };
        let snapshot = library.as_ref().map(Library::snapshot);
        let (spec, how) = embedder_recipe(options, snapshot.as_deref());
        let embeds = runtime.spawn_blocking(move || load_embedder(&spec, how));
        let (embedder, model, least) = embeds.await.context("loading the embedder")??;
        if let Some(library) = &library {
            library.check_model(&model)?;
        }
        let generator = match writes {
            None => None,
            Some(writes) => Some(writes.await.context("loading the generator")??),
        };
        let reranker = match reranks {
            None => None,
            Some(reranks) => Some(reranks.await.context("loading the reranker")??),
        };
        let (colbert, indexes) = tokens.await.context("loading the model of token vectors")??;
        let min_similarity = options.min_similarity.or(least).unwrap_or(-1.0);
        Ok(Self { embedder, generator, reranker, colbert, indexes, library, min_similarity })
    }
}

async fn open_library(options: &Options, runtime: Handle) -> Result<Option<Library>> {
    let Some(path) = &options.library else { return Ok(None) };
    let (storage, table) = (&options.storage, &options.table);
    Library::open(path, storage, table, options.threads, runtime).await.map(Some)
}

/// Returns which model embeds, and how. The library says how its model was used; where that is named anew, it is used as the
/// library's was.
fn embedder_recipe(options: &Options, library: Option<&Snapshot>) -> (String, EmbedderOptions) {
    let made = library.map(|snapshot| snapshot.model.recipe());
    let (made, how) = made.unwrap_or_else(|| (EMBEDDER.into(), EmbedderOptions::default()));
    let precision = options.precision.unwrap_or(how.precision);
    (options.embedder.clone().unwrap_or(made), EmbedderOptions { threads: options.threads, precision, ..how })
}

/// Returns the model that was named for the library's token vectors: with indexes, the one that is named may be theirs alone.
fn named_for<'a>(late: &Late, options: &'a Options) -> Option<&'a String> {
    let is_own = |spec: &str| models::locate(spec).is_ok_and(|found| found.name == late.made.name());
    options.colbert.as_ref().filter(|spec| options.indexes.is_none() || is_own(spec))
}

/// Returns what reads questions to the library's token vectors; `None` where they cannot be asked.
fn load_colbert(options: &Options, library: Option<&Snapshot>) -> Result<Option<Arc<Colbert>>> {
    let Some(snapshot) = library else { return Ok(None) };
    let load = |spec: &str, precision| {
        let model = models::locate(spec).and_then(|found| Ok(Colbert::load(found, precision, options.threads)?));
        model.map(Arc::new).with_context(|| format!("the ColBERT model {spec}"))
    };
    let asked = options.retrieval == RetrievalKind::Colbert;
    let late = match snapshot.late() {
        Ok(late) => late,
        Err(problem) if asked => return Err(Error::new(problem).context("retrieval colbert")),
        // A sync may make some yet.
        Err(_) => return options.colbert.as_deref().map(|spec| load(spec, Precision::F32)).transpose(),
    };
    let named = named_for(late, options);
    let (recorded, precision) = late.recipe();
    let loaded = load(named.unwrap_or(&recorded), precision).and_then(|colbert| {
        late.made.check(&colbert.name, &colbert.revision, colbert.model.dim()).map_err(Error::msg)?;
        Ok(colbert)
    });
    match loaded {
        Ok(colbert) => Ok(Some(colbert)),
        // Nobody has asked for it yet.
        Err(problem) if named.is_none() && !asked => {
            let what = "the library cannot be searched by its token vectors; name their model with --colbert";
            tracing::warn!("{what}: {problem:#}");
            Ok(None)
        }
        Err(problem) => Err(problem),
    }
}

/// Returns the indexes with what reads for them; that is the library's own model where it is the same.
fn load_indexes(options: &Options, own: Option<&Arc<Colbert>>, runtime: Handle) -> Result<Option<Arc<Indexes>>> {
    let Some(root) = &options.indexes else { return Ok(None) };
    let spec = options.colbert.as_deref().unwrap_or(COLBERT);
    let what = || format!("the indexes' model {spec}");
    let located = models::locate(spec).with_context(what)?;
    let model = match own {
        Some(own) if own.is(&located) => Arc::clone(own),
        _ => Arc::new(Colbert::load(located, Precision::F32, options.threads).with_context(what)?),
    };
    Ok(Some(Indexes::open(root, model, options.threads, runtime)?))
}

/// Returns the embedder, what a library must have been made with, and the similarity that its catalogue entry states.
fn load_embedder(spec: &str, how: EmbedderOptions) -> Result<(Embeds, Model, Option<f32>)> {
    let Located { path, name, revision, profile, adapters } = models::locate(spec)?;
    let text = |key: &str| profile.get(key).and_then(Value::as_str).map(str::to_owned);
    let options = EmbedderOptions {
        max_tokens: profile.get("max_tokens").and_then(Value::as_u64).map(|n| n as usize),
        query_prefix: how.query_prefix.clone().or_else(|| text("query_prefix")),
        passage_prefix: how.passage_prefix.clone().or_else(|| text("passage_prefix")),
        pooling: text("pooling"),
        adapters,
        ..how
    };
    let embedder = Embedder::load(&path, &options).with_context(|| format!("the embedder {name}"))?;
    let prompts = json!({"query": embedder.prefix(Kind::Query), "passage": embedder.prefix(Kind::Passage)});
    let (dim, max_tokens, pooling) = (embedder.dim(), embedder.max_tokens(), embedder.pooling().name().to_owned());
    let revision = options.revision(&revision);
    let model = Model { name: name.clone(), revision: Some(revision), dim, pooling, prompts };
    let least = profile.get("min_similarity").and_then(Value::as_f64).map(|x| x as f32);
    let batches = Embedding::start(Arc::new(embedder)).context("starting the embedder's thread")?;
    Ok((Embeds { name, dim, max_tokens, batches }, model, least))
}

impl Reranks {
    fn load(spec: &str, threads: Option<usize>) -> Result<Self> {
        let Located { path, name, .. } = models::locate(spec)?;
        let model = Reranking::load(&path, threads).with_context(|| format!("the reranker {name}"))?;
        Ok(Self { name, model })
    }
}

impl Writes {
    fn load(spec: &str, options: &Options) -> Result<Self> {
        let Located { path, name, profile, adapters, .. } = models::locate(spec)?;
        let settings = GeneratorOptions {
            threads: options.threads,
            context: options.context,
            slots: Some(options.slots),
            prefix_bytes: Some(options.prefix_bytes),
            adapters,
            quantize: options.quantize,
            ..GeneratorOptions::default()
        };
        let model = Generator::load(&path, &settings).with_context(|| format!("the generator {name}"))?;
        let profile = Profile::read(name.as_str(), &profile)?;
        Ok(Self { name, profile, model })
    }
}
