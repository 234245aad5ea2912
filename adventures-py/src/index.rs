//! `adventures._adventures.MultiVectorIndex`, which `adventures.ColbertIndex` is made of.

#![allow(clippy::needless_pass_by_value, reason = "what PyO3 makes of arguments is owned")]

use crate::boundary::{Process, run};
use crate::convert::{shown, text, texts, type_name};
use crate::error::PyError;
use crate::option;
use adventures::{Documents, Error, IndexOptions, SearchOptions};
use numpy::{PyArray2, PyArrayMethods, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyString};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// What a search found of a document: its id, text, score and the JSON of its metadata.
type Hit = (String, Option<String>, f32, Option<String>);

/// An index of many vectors a document; the stub has its documentation.
#[pyclass(frozen, module = "adventures")]
pub(crate) struct MultiVectorIndex {
    inner: adventures::Index,
    process: Process,
}

/// The one that changes an index; the stub has its documentation.
#[pyclass(frozen, module = "adventures")]
pub(crate) struct IndexWriter {
    /// `None` once it is done.
    inner: Mutex<Option<adventures::Writer>>,
    process: Process,
}

#[pymethods]
impl MultiVectorIndex {
    #[staticmethod]
    #[pyo3(signature = (path, *, dim=None, nbits=4, seed=42, threads=None, model=None))]
    fn create(
        py: Python<'_>,
        path: PathBuf,
        #[pyo3(from_py_with = option::dim)] dim: Option<usize>,
        #[pyo3(from_py_with = option::nbits)] nbits: usize,
        #[pyo3(from_py_with = option::index_seed)] seed: u64,
        #[pyo3(from_py_with = option::threads)] threads: Option<usize>,
        model: Option<String>,
    ) -> PyResult<(Self, IndexWriter)> {
        let options = IndexOptions { nbits, seed, dim: dim.unwrap_or(0), threads, model };
        let (inner, writer) = run(py, |_| adventures::Index::create(&path, &options))?;
        let process = Process::current();
        Ok((Self { inner, process }, IndexWriter { inner: Mutex::new(Some(writer)), process }))
    }

    #[staticmethod]
    #[pyo3(signature = (path, *, threads=None))]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        #[pyo3(from_py_with = option::threads)] threads: Option<usize>,
    ) -> PyResult<Self> {
        let inner = run(py, |_| adventures::Index::open(&path, threads))?;
        Ok(Self { inner, process: Process::current() })
    }

    #[pyo3(signature = (*, upsert=false))]
    fn writer(&self, py: Python<'_>, upsert: bool) -> PyResult<IndexWriter> {
        self.process.check("index")?;
        let writer = run(py, |_| self.inner.writer(upsert))?;
        Ok(IndexWriter { inner: Mutex::new(Some(writer)), process: Process::current() })
    }

    #[pyo3(signature = (queries, *, k=10, ids=None, probes=None, candidates=None, exhaustive=false))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn search(
        &self,
        py: Python<'_>,
        queries: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::k)] k: usize,
        ids: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = option::probes)] probes: Option<usize>,
        #[pyo3(from_py_with = option::candidates)] candidates: Option<usize>,
        exhaustive: bool,
    ) -> PyResult<Vec<Vec<Hit>>> {
        self.process.check("index")?;
        let queries = Ragged::of(queries, "query")?;
        let ids = ids.map(names).transpose()?;
        let ids: Option<Vec<&str>> = ids.as_ref().map(|ids| ids.iter().map(|id| &**id).collect());
        let options = SearchOptions { k, probes, candidates, exhaustive };
        let dim = if queries.ends.is_empty() { self.inner.info().dim.max(1) } else { queries.dim };
        run(py, |cancel| {
            let ids = ids.as_deref();
            let found = self.inner.search(&queries.vectors, dim, &queries.ends, &options, ids, cancel)?;
            let hit = |one| {
                let owned = |text: Option<&str>| text.map(str::to_owned);
                Ok((found.id(one).to_owned(), owned(found.text(one)?), one.score, owned(found.metadata(one)?)))
            };
            found.queries.iter().map(|hits| hits.iter().map(hit).collect()).collect()
        })
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        run(py, |_| self.inner.verify())
    }

    fn refresh(&self, py: Python<'_>) -> PyResult<bool> {
        run(py, |_| self.inner.refresh())
    }

    fn ids(&self) -> Vec<String> {
        self.inner.ids()
    }

    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (info, of) = (self.inner.info(), PyDict::new(py));
        of.set_item("path", self.inner.dir())?;
        of.set_item("generation", info.generation)?;
        of.set_item("documents", info.documents)?;
        of.set_item("deleted", info.deleted)?;
        of.set_item("tokens", info.tokens)?;
        of.set_item("dim", info.dim)?;
        of.set_item("nbits", info.nbits)?;
        of.set_item("centroids", info.centroids)?;
        of.set_item("segments", info.segments)?;
        of.set_item("bytes", info.bytes)?;
        of.set_item("seed", info.seed)?;
        of.set_item("model", info.model)?;
        Ok(of)
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }

    fn __contains__(&self, key: &Bound<'_, PyAny>) -> bool {
        key.cast::<PyString>().ok().and_then(|id| id.to_str().ok()).is_some_and(|id| self.inner.contains(id))
    }
}

#[pymethods]
impl IndexWriter {
    #[pyo3(signature = (ids, vectors, *, texts=None, metadata=None))]
    fn push(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        vectors: &Bound<'_, PyAny>,
        texts: Option<Vec<Option<PyBackedStr>>>,
        metadata: Option<Vec<Option<PyBackedStr>>>,
    ) -> PyResult<()> {
        let (ids, vectors) = (names(ids)?, Ragged::of(vectors, "document")?);
        let ids: Vec<&str> = ids.iter().map(|id| &**id).collect();
        let of = |column: &Option<Vec<Option<PyBackedStr>>>| -> Option<Vec<Option<String>>> {
            Some(column.as_ref()?.iter().map(|text| text.as_ref().map(ToString::to_string)).collect())
        };
        let (texts, metadata) = (of(&texts), of(&metadata));
        let texts: Option<Vec<Option<&str>>> = texts.as_ref().map(|all| all.iter().map(Option::as_deref).collect());
        let metadata: Option<Vec<Option<&str>>> =
            metadata.as_ref().map(|all| all.iter().map(Option::as_deref).collect());
        if vectors.ends.is_empty() && ids.is_empty() {
            return Ok(());
        }
        self.with(py, |writer, cancel| {
            let documents = Documents {
                ids: &ids,
                texts: texts.as_deref(),
                metadata: metadata.as_deref(),
                vectors: &vectors.vectors,
                ends: &vectors.ends,
            };
            writer.push(&documents, vectors.dim, cancel)
        })
    }

    fn delete(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let id = text(key, "an id")?;
        self.with(py, |writer, _| Ok(writer.delete(&id)))
    }

    fn delete_all(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
        let ids = names(keys)?;
        self.with(py, |writer, _| Ok(ids.iter().find(|id| !writer.delete(id)).map(ToString::to_string)))
    }

    #[pyo3(signature = (progress=None))]
    fn commit(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<usize> {
        let writer = self.take()?;
        let mut raised = None;
        let mut tell = |stage: &'static str, done: usize, total: usize| {
            let Some(progress) = &progress else { return Ok(()) };
            Python::attach(|py| progress.call1(py, (stage, done, total))).map(drop).map_err(|e| {
                raised = Some(e);
                Error::Cancelled
            })
        };
        let done = run(py, |cancel| writer.commit(&mut tell, cancel));
        raised.map_or(done, Err)
    }

    fn compact(&self, py: Python<'_>) -> PyResult<usize> {
        let writer = self.take()?;
        run(py, |cancel| writer.compact(cancel))
    }

    fn abandon(&self) {
        drop(self.inner.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl IndexWriter {
    fn take(&self) -> PyResult<adventures::Writer> {
        self.process.check("index")?;
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(done)
    }

    fn with<T: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut adventures::Writer, &std::sync::atomic::AtomicBool) -> adventures::Result<T> + Send,
    ) -> PyResult<T> {
        // Out of its place meanwhile, so that no thread waits for a lock with the GIL held.
        let mut writer = self.take()?;
        let (writer, result) = {
            let result = run(py, |cancel| Ok(f(&mut writer, cancel)));
            (writer, result)
        };
        let result = result?.map_err(|e| PyErr::from(PyError(e)))?;
        *self.inner.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        Ok(result)
    }
}

fn done() -> PyErr {
    PyValueError::new_err("this writer is done: it has committed, failed or was abandoned")
}

/// Returns ids, which are strings.
fn names(ids: &Bound<'_, PyAny>) -> PyResult<Vec<PyBackedStr>> {
    if ids.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(format!("ids={}: expected an iterable of str, not str", shown(ids))));
    }
    texts(ids, "id")
}

/// Arrays of vectors, one after the other.
struct Ragged {
    vectors: Vec<f32>,
    ends: Vec<usize>,
    dim: usize,
}

impl Ragged {
    /// Reads an iterable of arrays of `(n, dim)`, f32.
    fn of(arrays: &Bound<'_, PyAny>, name: &str) -> PyResult<Self> {
        let (mut vectors, mut ends, mut dim) = (Vec::new(), Vec::new(), 0);
        for (i, array) in arrays.try_iter()?.enumerate() {
            let array = array?;
            let Ok(array) = array.cast::<PyArray2<f32>>() else {
                let name_of = type_name(&array);
                return Err(PyTypeError::new_err(format!(
                    "the vectors of {name} {i} are {name_of}, not a float32 array of (tokens, dim)"
                )));
            };
            let array: PyReadonlyArray2<'_, f32> = array.readonly();
            let own = array.shape()[1];
            if i > 0 && own != dim {
                return Err(PyValueError::new_err(format!(
                    "the vectors of {name} {i} have {own} dimensions, those before have {dim}"
                )));
            }
            dim = own;
            match array.as_slice() {
                Ok(rows) => vectors.extend_from_slice(rows),
                Err(_) => vectors.extend(array.as_array().iter()),
            }
            ends.push(vectors.len() / dim.max(1));
        }
        Ok(Self { vectors, ends, dim })
    }
}
