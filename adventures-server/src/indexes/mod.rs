//! `ColBERT` indexes in a folder: searched by many at once, each changed by one job after the other.

mod jobs;
mod name;

pub use jobs::{Job, Kind, Status};
pub use name::{IndexName, NotAName};

use crate::colbert::Colbert;
use crate::turns::Ends;
use adventures::{Documents, Error, Index, IndexInfo, IndexOptions, SearchOptions, Writer};
use jobs::Board;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tracing::Instrument;
use uuid::Uuid;

/// How many documents are read before a question, or another index, has its turn at the model.
const TURN: usize = 8;
/// How many changes may wait, of all indexes.
const WAITING: usize = 64;
/// What the name of a folder that is being deleted begins with; no index's does.
const DROPPED: &str = ".dropped-";

/// A document to be found.
#[derive(Debug, Clone)]
pub struct Document {
    /// Unlike all others of the index.
    pub id: String,
    /// What is searched.
    pub text: String,
    /// JSON.
    pub metadata: Option<String>,
}

/// What to do to an index.
#[derive(Debug)]
pub enum Change {
    /// Make it of these documents, with so many bits a dimension.
    Create(Vec<Document>, usize),
    /// Add documents.
    Add(Vec<Document>),
    /// Add documents, in the place of those that have their ids.
    Upsert(Vec<Document>),
    /// Delete documents.
    Delete(Vec<String>),
    /// Delete it.
    Drop,
}

impl Change {
    fn kind(&self) -> Kind {
        match self {
            Self::Create(..) => Kind::Create,
            Self::Add(_) => Kind::Add,
            Self::Upsert(_) => Kind::Upsert,
            Self::Delete(_) => Kind::Delete,
            Self::Drop => Kind::Drop,
        }
    }

    fn documents(&self) -> usize {
        match self {
            Self::Create(documents, _) | Self::Add(documents) | Self::Upsert(documents) => documents.len(),
            Self::Delete(ids) => ids.len(),
            Self::Drop => 0,
        }
    }
}

/// Why a change does not wait for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is an index of that name.
    Exists,
    /// There is none.
    Missing,
    /// Too many wait.
    Full,
}

/// A document that was found.
#[derive(Debug)]
pub struct Hit {
    /// Its id.
    pub id: String,
    /// Its text.
    pub text: Option<String>,
    /// The sum, over the question's tokens, of the largest product with a token of it.
    pub score: f32,
    /// What it came with.
    pub metadata: Option<Value>,
}

/// What was found.
#[derive(Debug)]
pub struct Hits {
    /// The best first.
    pub hits: Vec<Hit>,
    /// Whether the question was longer than the model reads.
    pub truncated: bool,
}

fn missing(name: &IndexName) -> Error {
    Error::NotFound(format!("there is no index {:?}", name.to_string()))
}

/// What waits to be done to an index; the first is being done.
type Queue = VecDeque<(String, Kind, Option<Change>)>;

/// A folder of indexes, and the model that reads for them.
pub struct Indexes {
    root: PathBuf,
    colbert: Arc<Colbert>,
    threads: Option<usize>,
    runtime: Handle,
    open: Mutex<HashMap<IndexName, Index>>,
    queues: Mutex<HashMap<IndexName, Queue>>,
    board: Board,
    stop: AtomicBool,
}

impl std::fmt::Debug for Indexes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Indexes").field("root", &self.root).field("model", &self.colbert).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Indexes {
    /// Opens a folder, for which `colbert` reads; it is made where it is not there.
    pub fn open(
        root: &Path,
        colbert: Arc<Colbert>,
        threads: Option<usize>,
        runtime: Handle,
    ) -> Result<Arc<Self>, Error> {
        let fail = |e| Error::io(format!("the folder of indexes {}", root.display()), e);
        fs::create_dir_all(root).map_err(fail)?;
        let root = root.canonicalize().map_err(fail)?;
        // What a service that ended in the middle has left.
        for entry in fs::read_dir(&root).map_err(fail)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(DROPPED) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(Arc::new(Self {
            root,
            colbert,
            threads,
            runtime,
            open: Mutex::default(),
            queues: Mutex::default(),
            board: Board::default(),
            stop: AtomicBool::new(false),
        }))
    }

    /// What the model is called.
    pub fn model(&self) -> &str {
        &self.colbert.name
    }

    /// How many tokens of a document are read.
    pub fn max_tokens(&self) -> usize {
        self.colbert.model.doc_maxlen()
    }

    /// How many changes wait or are being made.
    pub fn jobs_left(&self) -> usize {
        locked(&self.queues).values().map(VecDeque::len).sum()
    }

    /// A change that was asked for.
    pub fn job(&self, id: &str) -> Option<Job> {
        self.board.get(id)
    }

    /// All changes that are remembered, the oldest first.
    pub fn jobs(&self) -> Vec<Job> {
        self.board.all()
    }

    /// Ends what is being changed, and what waits; the indexes stay as they are.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Where an index is, or would be.
    pub fn dir(&self, name: &IndexName) -> PathBuf {
        self.root.join(name)
    }

    fn exists(&self, name: &IndexName) -> bool {
        let dir = self.dir(name);
        // A link would lead out of the folder.
        fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir()) && Index::is_at(&dir)
    }

    /// Lets a change wait for those of the same index that came before; changes of several indexes are made side by side.
    pub fn change(self: &Arc<Self>, name: &IndexName, change: Change) -> Result<Job, Refusal> {
        let kind = change.kind();
        let mut queues = locked(&self.queues);
        let mut there = self.exists(name);
        for (_, kind, _) in queues.get(name).into_iter().flatten() {
            match kind {
                Kind::Create => there = true,
                Kind::Drop => there = false,
                Kind::Add | Kind::Upsert | Kind::Delete => {}
            }
        }
        match (kind, there) {
            (Kind::Create, true) => return Err(Refusal::Exists),
            (Kind::Create, false) | (_, true) => {}
            (_, false) => return Err(Refusal::Missing),
        }
        if queues.values().map(VecDeque::len).sum::<usize>() >= WAITING {
            return Err(Refusal::Full);
        }
        let job = Job::new(name, kind, change.documents());
        self.board.add(job.clone());
        let queue = queues.entry(name.clone()).or_default();
        queue.push_back((job.id.clone(), kind, Some(change)));
        if queue.len() == 1 {
            self.runtime.spawn(Arc::clone(self).work(name.clone()));
        }
        Ok(job)
    }

    /// Makes the changes of an index until none is left.
    async fn work(self: Arc<Self>, name: IndexName) {
        loop {
            let next = match locked(&self.queues).get_mut(&name).and_then(VecDeque::front_mut) {
                Some((id, _, change)) => change.take().map(|change| (id.clone(), change)),
                None => None,
            };
            if let Some((id, change)) = next {
                self.board.update(&id, |job| job.status = Status::Running);
                let span = tracing::debug_span!("index", kind = ?change.kind(), documents = change.documents());
                let (this, name, job) = (Arc::clone(&self), name.clone(), id.clone());
                let made = self.runtime.spawn_blocking(move || this.apply(&name, &job, change));
                // A panic ends this change alone.
                let made =
                    made.instrument(span).await.unwrap_or_else(|problem| Err(Error::Invalid(problem.to_string())));
                if let Err(problem) = &made {
                    tracing::warn!(job = id, "an index was not changed: {problem}");
                }
                self.board.update(&id, |job| match made {
                    Ok(()) => (job.status, job.done) = (Status::Done, job.documents),
                    Err(problem) => (job.status, job.error) = (Status::Failed, Some(problem.to_string())),
                });
            }
            let mut queues = locked(&self.queues);
            let Some(queue) = queues.get_mut(&name) else { return };
            queue.pop_front();
            if queue.is_empty() {
                queues.remove(&name);
                return;
            }
        }
    }

    fn apply(&self, name: &IndexName, job: &str, change: Change) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        match change {
            Change::Create(documents, nbits) => {
                let (dim, threads, model) = (self.colbert.model.dim(), self.threads, Some(self.described()));
                let options = IndexOptions { nbits, dim, threads, model, ..IndexOptions::default() };
                let dir = self.dir(name);
                let (index, writer) = Index::create(&dir, &options)?;
                if let Err(problem) = self.fill(writer, job, &documents) {
                    // It is empty but for a lock, unless somebody else has come in between.
                    if !Index::is_at(&dir) {
                        let _ = fs::remove_dir_all(&dir);
                    }
                    return Err(problem);
                }
                locked(&self.open).insert(name.clone(), index);
                Ok(())
            }
            Change::Add(documents) => self.fill(self.opened(name)?.writer(false)?, job, &documents),
            Change::Upsert(documents) => self.fill(self.opened(name)?.writer(true)?, job, &documents),
            Change::Delete(ids) => {
                let mut writer = self.opened(name)?.writer(false)?;
                if let Some(id) = ids.iter().find(|id| !writer.delete(id)) {
                    return Err(Error::Invalid(format!("id {id:?} is not in the index {name}, or is given twice")));
                }
                writer.commit(&mut |_, _, _| Ok(()), &self.stop)?;
                Ok(())
            }
            Change::Drop => {
                let index = self.opened(name)?;
                // Nobody else may be writing.
                let writer = index.writer(false)?;
                let (dir, aside) = (self.dir(name), self.root.join(format!("{DROPPED}{}", Uuid::new_v4())));
                fs::rename(&dir, &aside).map_err(|e| Error::io(format!("removing {}", dir.display()), e))?;
                locked(&self.open).remove(name);
                drop(writer);
                // Who searches it still reads what it has open; what cannot be removed is, at the next start.
                let _ = fs::remove_dir_all(&aside);
                Ok(())
            }
        }
    }

    /// Embeds documents and commits them.
    fn fill(&self, mut writer: Writer, job: &str, documents: &[Document]) -> Result<(), Error> {
        for part in documents.chunks(TURN) {
            let texts: Vec<&str> = part.iter().map(|document| document.text.as_str()).collect();
            let turn = self.runtime.block_on(self.colbert.turns.next());
            let found = self.colbert.model.embed_documents(&texts, None, 1, &self.stop)?;
            drop(turn);
            let ids: Vec<&str> = part.iter().map(|document| document.id.as_str()).collect();
            let texts: Vec<Option<&str>> = texts.into_iter().map(Some).collect();
            let metadata: Vec<Option<&str>> = part.iter().map(|document| document.metadata.as_deref()).collect();
            let (vectors, ends) = (&found.vectors[..], &found.offsets[1..]);
            let pushed = Documents { ids: &ids, texts: Some(&texts), metadata: Some(&metadata), vectors, ends };
            writer.push(&pushed, self.colbert.model.dim(), &self.stop)?;
            self.board.update(job, |job| {
                job.done += part.len();
                job.truncated.extend(found.truncated.iter().map(|&i| part[i].id.clone()));
            });
        }
        writer.commit(&mut |_, _, _| Ok(()), &self.stop)?;
        Ok(())
    }

    /// The index as it was committed last.
    fn opened(&self, name: &IndexName) -> Result<Index, Error> {
        if !self.exists(name) {
            locked(&self.open).remove(name);
            return Err(missing(name));
        }
        let known = locked(&self.open).get(name).cloned();
        if let Some(index) = known {
            // Another process may have changed it.
            index.refresh().map_err(|problem| self.unreadable(name, problem))?;
            return Ok(index);
        }
        let index = Index::open(self.dir(name), self.threads).map_err(|problem| self.unreadable(name, problem))?;
        self.check_model(name, index.info().model.as_deref())?;
        Ok(locked(&self.open).entry(name.clone()).or_insert(index).clone())
    }

    /// That the files of an index cannot be read is not the client's fault, nor where they are the client's business.
    fn unreadable(&self, name: &IndexName, problem: Error) -> Error {
        if let Error::Busy(_) | Error::Cancelled = problem {
            return problem;
        }
        // Another process may have deleted it meanwhile.
        if !self.exists(name) {
            return missing(name);
        }
        tracing::error!(index = %name, "an index cannot be read: {problem}");
        let more = "its files are not as they were written; the service's log says more";
        Error::io(format!("the index {:?} cannot be read", name.to_string()), std::io::Error::other(more))
    }

    /// What an index keeps of its model; the Python package writes and reads the same.
    fn described(&self) -> String {
        let Colbert { name, revision, model, .. } = &*self.colbert;
        let (dim, query_maxlen, doc_maxlen) = (model.dim(), model.query_maxlen(), model.doc_maxlen());
        let mut told = json!({"name": name, "dim": dim, "query_maxlen": query_maxlen, "doc_maxlen": doc_maxlen});
        if !revision.is_empty() {
            told["revision"] = json!(revision);
        }
        told.to_string()
    }

    /// Fails where an index was made with another model; one that was given vectors does not know.
    fn check_model(&self, name: &IndexName, made: Option<&str>) -> Result<(), Error> {
        let Some(made) = made.and_then(|made| serde_json::from_str::<Value>(made).ok()) else { return Ok(()) };
        let of = |key: &str| made.get(key).and_then(Value::as_str).unwrap_or_default();
        // How products are rounded is no other model; a directory that was moved is none either.
        let plain = |revision: &str| revision.split('+').next().unwrap_or_default().to_owned();
        let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
        let (theirs, ours) = (plain(of("revision")), plain(&self.colbert.revision));
        let (their_name, our_name) = (last(of("name")), last(&self.colbert.name));
        let known = !theirs.is_empty() && !ours.is_empty();
        let differs = if known { theirs != ours } else { !their_name.is_empty() && their_name != our_name };
        if differs {
            return Err(Error::Invalid(format!(
                "the index {name} was made with {:?} {:?}, not with {:?} {:?}",
                of("name"),
                of("revision"),
                self.colbert.name,
                self.colbert.revision
            )));
        }
        Ok(())
    }

    /// What an index is made of.
    pub async fn info(self: &Arc<Self>, name: &IndexName) -> Result<IndexInfo, Error> {
        let (this, name) = (Arc::clone(self), name.clone());
        let info = self.runtime.spawn_blocking(move || this.opened(&name).map(|index| index.info()));
        info.await.unwrap_or_else(|problem| Err(Error::Invalid(problem.to_string())))
    }

    /// The names of all indexes, in order.
    pub fn names(&self) -> Result<Vec<IndexName>, Error> {
        let fail = |e| Error::io(format!("reading {}", self.root.display()), e);
        let entries = fs::read_dir(&self.root).map_err(fail)?.flatten();
        let mut names: Vec<IndexName> =
            entries.filter_map(|entry| IndexName::try_from(entry.file_name().to_str()?).ok()).collect();
        names.retain(|name| self.exists(name));
        names.sort_unstable();
        Ok(names)
    }

    /// Finds the documents of an index that are nearest to a question, of those with `ids` only if these are given; dropping
    /// the future takes back what is not computed yet.
    pub async fn search(
        self: &Arc<Self>,
        name: &IndexName,
        text: String,
        k: usize,
        ids: Option<Vec<String>>,
    ) -> Result<Hits, Error> {
        let query = self.colbert.question(text).await?;
        let ends = Ends::default();
        let (this, name, cancel) = (Arc::clone(self), name.clone(), ends.flag());
        let found = self.runtime.spawn_blocking(move || {
            let ids: Option<Vec<&str>> = ids.as_ref().map(|ids| ids.iter().map(String::as_str).collect());
            let options = SearchOptions { k, ..SearchOptions::default() };
            let (dim, ends) = (this.colbert.model.dim(), &query.offsets[1..]);
            let found = this.opened(&name)?.search(&query.vectors, dim, ends, &options, ids.as_deref(), &cancel)?;
            let read = |hit| {
                let metadata = found.metadata(hit)?.map(serde_json::from_str).transpose();
                let broken = |e| Error::Invalid(format!("the metadata of {:?}: {e}", found.id(hit)));
                Ok(Hit {
                    id: found.id(hit).to_owned(),
                    text: found.text(hit)?.map(str::to_owned),
                    score: hit.score,
                    metadata: metadata.map_err(broken)?,
                })
            };
            let hits = found.queries.iter().flatten().map(read).collect::<Result<_, Error>>();
            let hits = hits.map_err(|problem| this.unreadable(&name, problem))?;
            Ok(Hits { hits, truncated: !query.truncated.is_empty() })
        });
        let found = found.instrument(tracing::debug_span!("search")).await;
        found.unwrap_or_else(|problem| Err(Error::Invalid(problem.to_string())))
    }
}
