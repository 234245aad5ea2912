//! What was asked to be changed, and what became of it.

use super::name::IndexName;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use utoipa::ToSchema;
use uuid::Uuid;

/// How many changes are remembered; the oldest that have ended are forgotten.
const REMEMBERED: usize = 1_000;

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Makes an index.
    Create,
    /// Adds documents.
    Add,
    /// Adds documents, in the place of those that have their ids.
    Upsert,
    /// Deletes documents.
    Delete,
    /// Deletes the index.
    Drop,
}

/// How far a change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Others of the same index come first.
    Waiting,
    /// It is being made.
    Running,
    /// Searches see it.
    Done,
    /// It was not made: the index is as it was.
    Failed,
}

/// A change of an index.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Job {
    /// What to ask for it by.
    pub id: String,
    /// The index.
    pub index_name: String,
    /// What it does.
    pub kind: Kind,
    /// How far it is.
    pub status: Status,
    /// How many documents it is about.
    pub documents: usize,
    /// How many of them have been read.
    pub done: usize,
    /// The documents whose ends were not read, because they are longer than the model reads.
    pub truncated: Vec<String>,
    /// What went wrong.
    pub error: Option<String>,
}

impl Job {
    pub(super) fn new(name: &IndexName, kind: Kind, documents: usize) -> Self {
        Self {
            id: Uuid::now_v7().to_string(),
            index_name: name.to_string(),
            kind,
            status: Status::Waiting,
            documents,
            done: 0,
            truncated: Vec::new(),
            error: None,
        }
    }

    fn ended(&self) -> bool {
        matches!(self.status, Status::Done | Status::Failed)
    }
}

/// All changes that are remembered, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Board(Mutex<VecDeque<Job>>);

impl Board {
    fn jobs(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, job: Job) {
        let mut jobs = self.jobs();
        if jobs.len() >= REMEMBERED
            && let Some(oldest) = jobs.iter().position(Job::ended)
        {
            jobs.remove(oldest);
        }
        jobs.push_back(job);
    }

    /// Changes what is remembered of a job.
    pub(super) fn update(&self, id: &str, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.jobs().iter_mut().rev().find(|job| job.id == id) {
            change(job);
        }
    }

    pub(super) fn get(&self, id: &str) -> Option<Job> {
        self.jobs().iter().find(|job| job.id == id).cloned()
    }

    pub(super) fn all(&self) -> Vec<Job> {
        self.jobs().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_is_forgotten_first() {
        let (board, name) = (Board::default(), IndexName::try_from("shop").expect("a name"));
        let first = Job::new(&name, Kind::Create, 1);
        let waiting = first.id.clone();
        board.add(first);
        for _ in 0..REMEMBERED {
            let job = Job::new(&name, Kind::Add, 1);
            let id = job.id.clone();
            board.add(job);
            board.update(&id, |job| job.status = Status::Done);
        }
        assert_eq!(board.all().len(), REMEMBERED);
        assert_eq!(board.get(&waiting).map(|job| job.status), Some(Status::Waiting));
    }
}
