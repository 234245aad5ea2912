//! `adventures.Reranker`.

use crate::boundary::{Process, run, run_on};
use crate::convert::{locate, profile_value, text, texts};
use crate::error::{PyError, TruncationWarning};
use crate::option;
use adventures::{RerankerKind, RerankerOptions};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyDict;
use std::ffi::CString;

/// A cross-encoder; the stub has its documentation.
#[pyclass(frozen, module = "adventures")]
pub(crate) struct Reranker {
    inner: adventures::Reranker,
    process: Process,
    #[pyo3(get)]
    name: String,
    #[pyo3(get)]
    revision: String,
    #[pyo3(get)]
    path: String,
}

/// The scores of some documents; the stub has its documentation.
#[pyclass(frozen, get_all, module = "adventures")]
#[allow(clippy::struct_field_names, reason = "what Python calls it")]
pub(crate) struct Scores {
    scores: Py<PyArray1<f32>>,
    tokens: Py<PyArray1<u32>>,
    truncated: Vec<usize>,
}

#[pymethods]
impl Reranker {
    #[new]
    #[pyo3(signature = (model, *, revision=None, device="auto", threads=None, max_tokens=None, precision="f32", activation=None, model_type=None))]
    #[allow(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        model: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::revision)] revision: Option<&str>,
        #[pyo3(from_py_with = option::device)] device: &str,
        #[pyo3(from_py_with = option::threads)] threads: Option<usize>,
        #[pyo3(from_py_with = option::max_tokens_or_none)] max_tokens: Option<usize>,
        #[pyo3(from_py_with = option::precision)] precision: &str,
        #[pyo3(from_py_with = option::activation)] activation: Option<&str>,
        #[pyo3(from_py_with = option::model_type)] model_type: Option<&str>,
    ) -> PyResult<Self> {
        let found = locate(model, revision, "reranker", None)?;
        let options = RerankerOptions {
            kind: model_type.map(str::parse).transpose().map_err(PyError)?,
            device: device.to_owned(),
            threads,
            max_tokens: match max_tokens {
                Some(given) => Some(given),
                None => profile_value(&found.profile, "max_tokens")?,
            },
            precision: precision.parse().map_err(PyError)?,
            activation: activation.map(str::parse).transpose().map_err(PyError)?,
        };
        let inner = run(model.py(), |_| adventures::Reranker::load(&found.path, &options))?;
        Ok(Self {
            inner,
            process: Process::current(),
            name: found.name,
            revision: found.revision,
            path: found.path.display().to_string(),
        })
    }

    #[getter]
    fn model_type(&self) -> &'static str {
        self.inner.kind().name()
    }

    #[getter]
    fn max_tokens(&self) -> usize {
        self.inner.max_tokens()
    }

    #[getter]
    fn precision(&self) -> &'static str {
        self.inner.precision().name()
    }

    #[getter]
    fn activation(&self) -> &'static str {
        self.inner.activation().name()
    }

    #[getter]
    fn threads(&self) -> usize {
        self.inner.threads()
    }

    #[getter]
    fn device(&self) -> &str {
        self.inner.device()
    }

    fn score(&self, py: Python<'_>, query: &Bound<'_, PyAny>, doc: &Bound<'_, PyAny>) -> PyResult<f32> {
        let found = self.read(py, query, &[text(doc, "the document")?])?;
        self.warn(py, &found)?;
        Ok(found.scores[0])
    }

    fn scores<'py>(
        &self,
        py: Python<'py>,
        query: &Bound<'py, PyAny>,
        docs: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let found = self.read(py, query, &texts(docs, "document")?)?;
        self.warn(py, &found)?;
        Ok(found.scores.into_pyarray(py))
    }

    fn compare(&self, py: Python<'_>, query: &Bound<'_, PyAny>, docs: &Bound<'_, PyAny>) -> PyResult<Scores> {
        let found = self.read(py, query, &texts(docs, "document")?)?;
        Ok(Scores {
            scores: found.scores.into_pyarray(py).unbind(),
            tokens: found.tokens.into_pyarray(py).unbind(),
            truncated: found.truncated,
        })
    }

    #[pyo3(signature = (query, docs, doc_ids=None, metadata=None))]
    fn rank<'py>(
        &self,
        py: Python<'py>,
        query: &Bound<'py, PyAny>,
        docs: &Bound<'py, PyAny>,
        doc_ids: Option<&Bound<'py, PyAny>>,
        metadata: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let texts = texts(docs, "document")?;
        let docs: Vec<Bound<'py, PyAny>> =
            texts.iter().map(|text| Ok(text.into_pyobject(py)?.into_any())).collect::<PyResult<_>>()?;
        let found = self.read(py, query, &texts)?;
        self.warn(py, &found)?;
        let options = PyDict::new(py);
        options.set_item("doc_ids", doc_ids)?;
        options.set_item("metadata", metadata)?;
        let ranking = py.import("adventures.ranking")?.getattr("Ranking")?;
        ranking.call_method("of", (query, docs, found.scores), Some(&options))
    }

    fn __repr__(&self) -> String {
        let (tokens, activation, device) =
            (self.inner.max_tokens(), self.inner.activation().name(), self.inner.device());
        format!("Reranker({:?}, max_tokens={tokens}, activation={activation:?}, device={device:?})", self.name)
    }
}

impl Reranker {
    fn read(&self, py: Python<'_>, query: &Bound<'_, PyAny>, docs: &[PyBackedStr]) -> PyResult<adventures::Scores> {
        self.process.check("Reranker")?;
        let query = text(query, "the query")?;
        run_on(py, self.inner.pool(), |cancel| self.inner.score(&query, docs, cancel))
    }

    fn warn(&self, py: Python<'_>, found: &adventures::Scores) -> PyResult<()> {
        let Some(first) = found.truncated.first() else { return Ok(()) };
        let message = format!(
            "{} of {} documents were longer than {} tokens{}; the first is document {first}",
            found.truncated.len(),
            found.scores.len(),
            self.inner.max_tokens(),
            match self.inner.kind() {
                RerankerKind::CrossEncoder => " with their query, and the longer of both was cut",
                RerankerKind::ColBERT => ", or their query was too long, and were cut",
            }
        );
        PyErr::warn(py, py.get_type::<TruncationWarning>().as_any(), &CString::new(message)?, 1)
    }
}

#[pymethods]
impl Scores {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let count = self.scores.bind(py).len()?;
        Ok(format!("Scores({count} documents, {} truncated)", self.truncated.len()))
    }
}
