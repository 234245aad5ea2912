//! Texts of many clients to vectors, in batches.

use adventures::{Embedder, Embeddings, Error, Kind};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tracing::Instrument;

/// How many bytes go to the model at a time: enough to be quick, little enough that an answer beside it is not held up.
const BATCH_BYTES: usize = 16 << 10;
/// How many bytes may wait; beyond, clients are told to come back later.
const QUEUE_BYTES: usize = 64 << 20;

/// A model that embeds, on a thread of its own. Requests take turns, so a long one does not hold up the others.
#[derive(Debug)]
pub struct Embedding {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    texts: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

#[derive(Debug)]
struct Job {
    texts: Vec<String>,
    kind: Kind,
    done: usize,
    /// Of the texts that are not done.
    bytes: usize,
    vectors: Embeddings,
    reply: oneshot::Sender<Result<Embeddings, Error>>,
}

impl Embedding {
    /// Starts the thread.
    pub fn start(embedder: Arc<Embedder>) -> std::io::Result<Self> {
        let shared =
            Arc::new(Shared { waiting: Mutex::default(), arrived: Condvar::new(), texts: AtomicUsize::default() });
        let worker = Arc::clone(&shared);
        std::thread::Builder::new().name("embedding".into()).spawn(move || {
            while let Some(batch) = worker.take() {
                // Whose batch it was are told, and the thread goes on for the others.
                if catch_unwind(AssertUnwindSafe(|| worker.compute(&embedder, batch))).is_err() {
                    tracing::error!("a batch of texts could not be embedded; this is a bug");
                }
            }
        })?;
        Ok(Self { shared })
    }

    /// Returns the vectors of the texts; dropping the future takes back what is not computed yet.
    pub async fn embed(&self, texts: Vec<String>, kind: Kind) -> Result<Embeddings, Error> {
        let vectors = Embeddings { vectors: Vec::new(), tokens: Vec::new(), truncated: Vec::new() };
        if texts.is_empty() {
            return Ok(vectors);
        }
        let bytes = size(&texts);
        let span = tracing::debug_span!("embed", texts = texts.len());
        let (reply, answer) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            let before: usize = waiting.jobs.iter().map(|job| job.bytes).sum();
            if before > 0 && before + bytes > QUEUE_BYTES {
                return Err(Error::Busy("too many texts are waiting to be embedded".into()));
            }
            waiting.jobs.push_back(Job { texts, kind, done: 0, bytes, vectors, reply });
        }
        self.shared.arrived.notify_one();
        answer
            .instrument(span)
            .await
            .unwrap_or_else(|_| Err(Error::io("embedding", std::io::Error::other("the computation was stopped"))))
    }

    /// Returns how many texts were embedded.
    pub fn texts(&self) -> usize {
        self.shared.texts.load(Ordering::Relaxed)
    }
}

impl Drop for Embedding {
    fn drop(&mut self) {
        self.shared.waiting().closed = true;
        self.shared.arrived.notify_all();
    }
}

fn size(texts: &[String]) -> usize {
    texts.iter().map(|text| text.len() + 1).sum()
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for jobs of one kind that together fill a batch; `None` when there will be no more.
    fn take(&self) -> Option<Vec<Job>> {
        let idle = |waiting: &mut Waiting| waiting.jobs.is_empty() && !waiting.closed;
        let mut waiting = self.arrived.wait_while(self.waiting(), idle).unwrap_or_else(PoisonError::into_inner);
        let kind = waiting.jobs.front()?.kind;
        let (mut batch, mut bytes, mut at) = (Vec::new(), 0, 0);
        while bytes < BATCH_BYTES && at < waiting.jobs.len() {
            if waiting.jobs[at].kind != kind {
                at += 1;
            } else if let Some(job) = waiting.jobs.remove(at).filter(|job| !job.reply.is_closed()) {
                bytes += job.bytes;
                batch.push(job);
            }
        }
        Some(batch)
    }

    fn compute(&self, embedder: &Embedder, mut batch: Vec<Job>) {
        let mut left = BATCH_BYTES;
        // Each job puts in what fits, and at least a text.
        let mut parts: Vec<usize> = Vec::with_capacity(batch.len());
        for job in &batch {
            let mut count = 0;
            for text in &job.texts[job.done..] {
                if count > 0 && text.len() + 1 > left {
                    break;
                }
                left = left.saturating_sub(text.len() + 1);
                count += 1;
            }
            parts.push(count);
        }
        // They belong to this batch alone, and come back no more.
        let parts_of = batch.iter_mut().zip(&parts);
        let texts: Vec<String> = parts_of
            .flat_map(|(job, count)| job.texts[job.done..job.done + count].iter_mut().map(std::mem::take))
            .collect();
        let Some(kind) = batch.first().map(|job| job.kind) else { return };
        let never = AtomicBool::new(false);
        let together = embedder.embed(&texts, kind, &never);
        let (dim, mut at) = (embedder.dim(), 0);
        for (mut job, count) in batch.drain(..).zip(parts) {
            let found = match &together {
                Ok(all) => Ok(part(all, at, count, dim)),
                // A text that cannot be read must not fail those of others.
                Err(_) => embedder.embed(&texts[at..at + count], kind, &never),
            };
            job.bytes -= size(&texts[at..at + count]);
            self.texts.fetch_add(count, Ordering::Relaxed);
            at += count;
            match found {
                Ok(found) => {
                    job.vectors.truncated.extend(found.truncated.iter().map(|i| i + job.done));
                    job.vectors.vectors.extend(found.vectors);
                    job.vectors.tokens.extend(found.tokens);
                    job.done += count;
                    if job.done < job.texts.len() {
                        self.waiting().jobs.push_back(job);
                    } else {
                        // Who asked may be gone.
                        let _ = job.reply.send(Ok(job.vectors));
                    }
                }
                Err(error) => {
                    let _ = job.reply.send(Err(error));
                }
            }
        }
    }
}

/// The vectors of `count` texts from `at` on.
fn part(all: &Embeddings, at: usize, count: usize, dim: usize) -> Embeddings {
    let own = |i: &&usize| (at..at + count).contains(*i);
    Embeddings {
        vectors: all.vectors[at * dim..(at + count) * dim].to_vec(),
        tokens: all.tokens[at..at + count].to_vec(),
        truncated: all.truncated.iter().filter(own).map(|i| i - at).collect(),
    }
}
