//! `adventures.Embedder`.

use crate::arrow::Strings;
use crate::boundary::{Process, run, run_here, run_on};
use crate::convert::{locate, profile_value, texts};
use crate::embeddings::EmbeddingStream;
use crate::error::{PyError, TruncationWarning};
use crate::option;
use adventures::{EmbedderOptions, Kind, Quantize};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::ffi::CString;

/// A sentence embedding model; the stub has its documentation.
#[pyclass(frozen, module = "adventures")]
pub(crate) struct Embedder {
    inner: adventures::Embedder,
    process: Process,
    #[pyo3(get)]
    name: String,
    #[pyo3(get)]
    revision: String,
    #[pyo3(get)]
    path: String,
}

/// The vectors of some texts; the stub has its documentation.
#[pyclass(frozen, get_all, module = "adventures")]
pub(crate) struct Embeddings {
    vectors: Py<PyArray2<f32>>,
    tokens: Py<PyArray1<u32>>,
    truncated: Vec<usize>,
}

fn kind(name: &str) -> PyResult<Kind> {
    match name {
        "query" => Ok(Kind::Query),
        "passage" => Ok(Kind::Passage),
        _ => Err(PyValueError::new_err(format!("kind={name:?}: expected \"query\" or \"passage\""))),
    }
}

#[pymethods]
impl Embedder {
    #[new]
    #[pyo3(signature = (model, *, revision=None, device="auto", threads=None, max_tokens=None, query_prefix=None, passage_prefix=None, adapter=None, quantize=None, precision="f32", dim=None, normalize=true))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn new(
        model: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::revision)] revision: Option<&str>,
        #[pyo3(from_py_with = option::device)] device: &str,
        #[pyo3(from_py_with = option::threads)] threads: Option<usize>,
        #[pyo3(from_py_with = option::max_tokens_or_none)] max_tokens: Option<usize>,
        #[pyo3(from_py_with = option::query_prefix)] query_prefix: Option<String>,
        #[pyo3(from_py_with = option::passage_prefix)] passage_prefix: Option<String>,
        adapter: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = option::quantize)] quantize: Option<Quantize>,
        #[pyo3(from_py_with = option::precision)] precision: &str,
        #[pyo3(from_py_with = option::dim)] dim: Option<usize>,
        #[pyo3(from_py_with = option::normalize)] normalize: bool,
    ) -> PyResult<Self> {
        let found = locate(model, revision, "embedder", adapter)?;
        let from_profile = |given: Option<String>, key: &str| match given {
            Some(given) => Ok(Some(given)),
            None => profile_value(&found.profile, key),
        };
        let options = EmbedderOptions {
            device: device.to_owned(),
            threads,
            max_tokens: match max_tokens {
                Some(given) => Some(given),
                None => profile_value(&found.profile, "max_tokens")?,
            },
            query_prefix: from_profile(query_prefix, "query_prefix")?,
            passage_prefix: from_profile(passage_prefix, "passage_prefix")?,
            pooling: profile_value(&found.profile, "pooling")?,
            adapters: found.adapters.clone(),
            quantize,
            precision: precision.parse().map_err(PyError)?,
            dim,
            unnormalized: !normalize,
        };
        let inner = run(model.py(), |_| adventures::Embedder::load(&found.path, &options))?;
        Ok(Self {
            inner,
            process: Process::current(),
            name: found.name,
            revision: options.revision(&found.revision),
            path: found.path.display().to_string(),
        })
    }

    #[getter]
    fn dim(&self) -> usize {
        self.inner.dim()
    }

    #[getter]
    fn max_tokens(&self) -> usize {
        self.inner.max_tokens()
    }

    #[getter]
    fn pooling(&self) -> &'static str {
        self.inner.pooling().name()
    }

    #[getter]
    fn precision(&self) -> &'static str {
        self.inner.precision().name()
    }

    #[getter]
    fn threads(&self) -> usize {
        self.inner.threads()
    }

    #[getter]
    fn device(&self) -> &str {
        self.inner.device()
    }

    #[getter]
    fn prompts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let prompts = PyDict::new(py);
        prompts.set_item("query", self.inner.prefix(Kind::Query))?;
        prompts.set_item("passage", self.inner.prefix(Kind::Passage))?;
        Ok(prompts)
    }

    #[pyo3(signature = (texts, kind="passage"))]
    fn embed<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = option::kind)] kind: &str,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let found = self.encode(py, texts, kind)?;
        self.warn(py, &found.truncated, found.tokens.bind(py).len()?)?;
        Ok(found.vectors.into_bound(py))
    }

    #[pyo3(signature = (texts, kind="passage"))]
    pub(crate) fn encode(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::kind)] kind: &str,
    ) -> PyResult<Embeddings> {
        self.process.check("Embedder")?;
        let (texts, kind) = (self::texts(texts, "text")?, self::kind(kind)?);
        let found = run_here(py, || self.inner.embed_here(&texts, kind))
            .unwrap_or_else(|| run_on(py, self.inner.pool(), |cancel| self.inner.embed(&texts, kind, cancel)))?;
        let vectors = found.vectors.into_pyarray(py).reshape([texts.len(), self.inner.dim()])?;
        Ok(Embeddings {
            vectors: vectors.unbind(),
            tokens: found.tokens.into_pyarray(py).unbind(),
            truncated: found.truncated,
        })
    }

    #[pyo3(signature = (texts, kind="passage"))]
    fn embed_arrow<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = option::kind)] kind: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.process.check("Embedder")?;
        let (strings, kind) = (Strings::of(texts)?, self::kind(kind)?);
        let texts = strings.texts()?;
        let found = run_on(py, self.inner.pool(), |cancel| self.inner.embed(&texts, kind, cancel))?;
        self.warn(py, &found.truncated, texts.len())?;
        let pyarrow = py.import("pyarrow")?;
        let numbers = pyarrow.call_method1("array", (found.vectors.into_pyarray(py),))?;
        pyarrow.getattr("FixedSizeListArray")?.call_method1("from_arrays", (numbers, self.inner.dim()))
    }

    #[pyo3(signature = (texts, kind="passage", *, batch=4096))]
    fn encode_stream(
        slf: Bound<'_, Self>,
        texts: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::kind)] kind: &str,
        #[pyo3(from_py_with = option::batch)] batch: usize,
    ) -> PyResult<EmbeddingStream> {
        self::kind(kind)?;
        EmbeddingStream::new(slf, texts, kind, batch)
    }

    #[pyo3(signature = (texts, kind="passage"))]
    fn count_tokens(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::kind)] kind: &str,
    ) -> PyResult<Vec<usize>> {
        self.process.check("Embedder")?;
        let (texts, kind) = (self::texts(texts, "text")?, self::kind(kind)?);
        run_on(py, self.inner.pool(), |_| self.inner.count(&texts, kind))
    }

    #[pyo3(signature = (texts, *, max_tokens=None, overlap=0))]
    fn split(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::max_tokens_or_none)] max_tokens: Option<usize>,
        #[pyo3(from_py_with = option::overlap)] overlap: usize,
    ) -> PyResult<Vec<Vec<String>>> {
        self.process.check("Embedder")?;
        let texts = self::texts(texts, "text")?;
        run_on(py, self.inner.pool(), |cancel| {
            let pieces = self.inner.split(&texts, max_tokens, overlap, cancel)?;
            Ok(pieces.into_iter().map(|pieces| pieces.into_iter().map(str::to_owned).collect()).collect())
        })
    }

    #[pyo3(signature = (texts, *, max_tokens=None, overlap=0))]
    fn split_spans(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::max_tokens_or_none)] max_tokens: Option<usize>,
        #[pyo3(from_py_with = option::overlap)] overlap: usize,
    ) -> PyResult<Vec<Vec<(usize, usize)>>> {
        self.process.check("Embedder")?;
        let texts = self::texts(texts, "text")?;
        run_on(py, self.inner.pool(), |cancel| self.inner.split_spans(&texts, max_tokens, overlap, cancel))
    }

    fn __repr__(&self) -> String {
        format!(
            "Embedder({:?}, dim={}, max_tokens={}, device={:?})",
            self.name,
            self.inner.dim(),
            self.inner.max_tokens(),
            self.inner.device()
        )
    }
}

impl Embedder {
    fn warn(&self, py: Python<'_>, truncated: &[usize], texts: usize) -> PyResult<()> {
        let Some(first) = truncated.first() else { return Ok(()) };
        let message = format!(
            "{} of {texts} texts were longer than {} tokens and were cut; the first is text {first}",
            truncated.len(),
            self.inner.max_tokens()
        );
        PyErr::warn(py, py.get_type::<TruncationWarning>().as_any(), &CString::new(message)?, 1)
    }
}

#[pymethods]
impl Embeddings {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let shape = self.vectors.bind(py).getattr("shape")?;
        Ok(format!("Embeddings(vectors of shape {shape}, {} texts truncated)", self.truncated.len()))
    }
}
