//! A library, read: the passages of a Delta table with their vectors, in the LanceDB table that the Python package writes.
//!
//! Such a table is a Lance dataset in a folder of its name.
//!
//! Readers follow the tag `published`: they see the table as it was before a sync, or as it is after.

mod filter;
mod hit;
mod late;
mod model;
mod neighbours;
mod place;
mod search;

pub use hit::{Hit, Source};
pub use late::{Late, Made};
pub use model::Model;
pub use search::Query;

use anyhow::{Context, Result, bail, ensure};
use arrow_schema::{Schema, SchemaRef};
use clap::ValueEnum;
use lance::Dataset;
use lance::index::DatasetIndexExt;
use place::Place;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use utoipa::ToSchema;

/// What marks the version that readers see.
const TAG: &str = "published";
/// The newest format that is understood.
const FORMAT: u64 = 1;

/// The most neighbours on each side that a hit takes in.
pub const MAX_EXPAND: usize = 100;

/// What finds passages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RetrievalKind {
    /// One vector of each.
    #[default]
    Dense,
    /// A vector of each token.
    Colbert,
}

/// Returns an error where a table's name could be a path, or none.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    ensure!(
        first && name.len() <= 63 && name.chars().all(plain),
        "the table name {name:?} must be of letters, digits, '_' and '-', 63 at most"
    );
    Ok(())
}

/// One published version of a library's table.
#[derive(Debug)]
pub struct Snapshot {
    table: Arc<Dataset>,
    schema: SchemaRef,
    /// LanceDB's number of the version.
    pub version: u64,
    /// How many passages it holds.
    pub rows: usize,
    /// The Delta table that it mirrors: table, version, columns, counts.
    pub source: Value,
    /// Which model made the vectors.
    pub model: Model,
    /// Its token vectors, where it has some.
    pub late: Option<Late>,
    has_text_index: bool,
    has_vector_index: bool,
}

/// A library that is being served.
///
/// LanceDB's work runs on the threads of `runtime`, so that whoever waits for it can do something else.
#[derive(Debug)]
pub struct Library {
    place: Place,
    name: String,
    threads: Option<usize>,
    runtime: Handle,
    current: Mutex<Arc<Snapshot>>,
}

impl Library {
    /// Opens the published version of a table; with so many threads its token vectors are searched.
    ///
    /// `path` is a folder or the address of an object store, `storage` are settings of that store.
    pub async fn open(
        path: &str,
        storage: &[(String, String)],
        name: &str,
        threads: Option<usize>,
        runtime: Handle,
    ) -> Result<Self> {
        check_name(name)?;
        let (place, name) = (Place::new(path, storage)?, name.to_owned());
        let opened = {
            let (place, name) = (place.clone(), name.clone());
            runtime.spawn(async move { Snapshot::open(&place, &name, threads).await })
        };
        let snapshot = opened.await.context("opening the library")??;
        Ok(Self { place, name, threads, runtime, current: Mutex::new(Arc::new(snapshot)) })
    }

    /// Returns the version that is served now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How often to ask whether another version was published.
    pub fn interval(&self) -> Duration {
        self.place.interval()
    }

    /// Serves the version that is published now; returns whether it is another. Searches that run keep theirs.
    pub async fn follow(&self) -> Result<bool> {
        let (place, name, threads, current) = (self.place.clone(), self.name.clone(), self.threads, self.snapshot());
        let followed = self.runtime.spawn(async move {
            if current.published().await? == Some(current.version) {
                return Ok(None);
            }
            let next = Snapshot::open(&place, &name, threads).await?;
            ensure!(
                next.model.fits(&current.model),
                "the new version was embedded with {}, not with {}; start the service anew",
                next.model.spell(),
                current.model.spell()
            );
            Ok(Some(next))
        });
        let Some(next) = followed.await.context("following the library")?? else { return Ok(false) };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(true)
    }

    /// Returns an error where the library's vectors were made by another model.
    pub fn check_model(&self, model: &Model) -> Result<()> {
        let made = self.snapshot().model.clone();
        ensure!(
            made.fits(model),
            "the library {} (table {:?}) was embedded with {}, not with {}",
            self.place.path(),
            self.name,
            made.spell(),
            model.spell()
        );
        Ok(())
    }

    /// Returns the passages of a version that answer a query best.
    pub async fn search(&self, snapshot: Arc<Snapshot>, query: Query) -> Result<Vec<Hit>, adventures::Error> {
        self.run(async move { search::search(&snapshot, &query).await }).await
    }

    /// Returns hits of a version with up to `n` passages of their row before them and after; those that meet become one.
    pub async fn expanded(
        &self,
        snapshot: Arc<Snapshot>,
        hits: Vec<Hit>,
        n: usize,
    ) -> Result<Vec<Hit>, adventures::Error> {
        self.run(async move { neighbours::expanded(&snapshot, hits, n).await }).await
    }

    async fn run(
        &self,
        work: impl Future<Output = Result<Vec<Hit>, adventures::Error>> + Send + 'static,
    ) -> Result<Vec<Hit>, adventures::Error> {
        let stopped = |problem| Err(adventures::Error::Busy(format!("the search was stopped: {problem}")));
        self.runtime.spawn(work).await.unwrap_or_else(stopped)
    }
}

impl Snapshot {
    /// Returns its token vectors; fails where it has none.
    pub fn late(&self) -> Result<&Late, adventures::Error> {
        let missing = "the library has no token vectors; `adventures sync --colbert` makes them";
        self.late.as_ref().ok_or_else(|| adventures::Error::Invalid(missing.into()))
    }

    async fn open(place: &Place, name: &str, threads: Option<usize>) -> Result<Self> {
        let folder = place.folder();
        let opened = place.open(name).await;
        let place = format!("{} (table {name:?})", place.path());
        let Some(newest) = opened.with_context(|| format!("opening the library {place}"))? else {
            bail!("no library at {place}: make one with `adventures sync`")
        };
        let Some(version) = published(&newest).await? else {
            bail!("nothing was published of the library {place}: its first sync is not done")
        };
        let table = newest.checkout_version(version).await.with_context(|| format!("version {version} of {place}"))?;
        let schema: SchemaRef = Arc::new(Schema::from(table.schema()));
        let Some(record) = schema.metadata().get("adventures") else {
            bail!("{place} was not written by adventures");
        };
        let record: Value = serde_json::from_str(record).with_context(|| format!("the record of {place}"))?;
        let format = record.get("format").and_then(Value::as_u64).unwrap_or(u64::MAX);
        ensure!(format <= FORMAT, "{place} has format {format}, this version reads up to {FORMAT}: update the service");
        let model = Model::deserialize(&record["model"]).with_context(|| format!("the record of {place}"))?;
        let indices = table.load_indices().await.with_context(|| format!("the indexes of {place}"))?;
        let indexed = |column: &str| {
            let field = table.schema().field(column).map(|field| field.id);
            indices.iter().any(|index| field.is_some_and(|field| index.fields.contains(&field)))
        };
        let (has_text_index, has_vector_index) = (indexed("text"), indexed("vector"));
        let rows = table.count_rows(None).await?;
        let source = source(&schema);
        let table = Arc::new(table);
        let (name, record) = (name.to_owned(), source.clone());
        // They are mapped into memory: on an object store there are none.
        let late = tokio::task::spawn_blocking(move || Late::open(&folder?, &name, &record, threads));
        let late = late.await.context("opening the library's token vectors")?;
        Ok(Self { table, schema, version, rows, source, model, late, has_text_index, has_vector_index })
    }

    async fn published(&self) -> Result<Option<u64>> {
        published(&self.table).await
    }

    /// Returns the columns that filters may name, with their types.
    pub fn columns(&self) -> Vec<(String, String)> {
        let columns = filter::columns(&self.schema);
        columns.iter().map(|(_, field)| (field.name().clone(), field.data_type().to_string())).collect()
    }
}

async fn published(table: &Dataset) -> Result<Option<u64>> {
    match table.tags().get_version(TAG).await {
        Err(lance::Error::RefNotFound { .. }) => Ok(None),
        found => found.map(Some).map_err(place::plain).context("the tags of the library"),
    }
}

/// What the schema says of the Delta table.
fn source(schema: &Schema) -> Value {
    let raw = schema.field_with_name("id").ok().and_then(|field| field.metadata().get("adventures.source"));
    raw.and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_else(|| json!({}))
}
