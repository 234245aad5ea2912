//! `adventures.ColBERT`.

use crate::boundary::{Process, run, run_on};
use crate::convert::{locate, text, texts};
use crate::error::{PyError, TruncationWarning};
use crate::option;
use adventures::ColBERTOptions;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::{PyIndexError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{IntoPyDict, PyList, PySlice, PyTuple};
use std::ffi::CString;

/// A late-interaction model; the stub has its documentation.
#[pyclass(frozen, module = "adventures")]
pub(crate) struct ColBERT {
    inner: adventures::ColBERT,
    process: Process,
    #[pyo3(get)]
    name: String,
    #[pyo3(get)]
    revision: String,
    #[pyo3(get)]
    path: String,
}

/// The vectors of some texts' tokens; the stub has its documentation.
#[pyclass(frozen, get_all, module = "adventures")]
pub(crate) struct TokenVectors {
    vectors: Py<PyArray2<f32>>,
    offsets: Py<PyArray1<i64>>,
    truncated: Vec<usize>,
}

/// A query beside a document; the stub has its documentation.
#[pyclass(frozen, get_all, module = "adventures")]
pub(crate) struct HeatMap {
    query_tokens: Vec<String>,
    doc_tokens: Vec<String>,
    similarities: Py<PyArray2<f32>>,
}

#[pymethods]
impl ColBERT {
    #[new]
    #[pyo3(signature = (model, *, revision=None, device="auto", threads=None, query_maxlen=None, doc_maxlen=None, precision="f32"))]
    fn new(
        model: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::revision)] revision: Option<&str>,
        #[pyo3(from_py_with = option::device)] device: &str,
        #[pyo3(from_py_with = option::threads)] threads: Option<usize>,
        #[pyo3(from_py_with = option::query_maxlen)] query_maxlen: Option<usize>,
        #[pyo3(from_py_with = option::doc_maxlen)] doc_maxlen: Option<usize>,
        #[pyo3(from_py_with = option::precision)] precision: &str,
    ) -> PyResult<Self> {
        let found = locate(model, revision, "colbert", None)?;
        let device = device.to_owned();
        let precision = precision.parse().map_err(PyError)?;
        let options = ColBERTOptions { device, threads, query_maxlen, doc_maxlen, precision };
        let inner = run(model.py(), |_| adventures::ColBERT::load(&found.path, &options))?;
        let rounded = if precision == adventures::Precision::F32 { "" } else { precision.name() };
        let plus = if rounded.is_empty() { "" } else { "+" };
        Ok(Self {
            inner,
            process: Process::current(),
            name: found.name,
            revision: format!("{}{plus}{rounded}", found.revision),
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
    fn query_maxlen(&self) -> usize {
        self.inner.query_maxlen()
    }

    #[getter]
    fn doc_maxlen(&self) -> usize {
        self.inner.doc_maxlen()
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

    #[pyo3(signature = (query, *, query_maxlen=None))]
    fn embed_query<'py>(
        &self,
        py: Python<'py>,
        query: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = option::query_maxlen)] query_maxlen: Option<usize>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let query = [text(query, "the query")?];
        Ok(self.queries(py, &query, query_maxlen)?.vectors.into_bound(py))
    }

    #[pyo3(signature = (queries, *, query_maxlen=None))]
    fn embed_queries<'py>(
        &self,
        py: Python<'py>,
        queries: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = option::query_maxlen)] query_maxlen: Option<usize>,
    ) -> PyResult<Bound<'py, PyList>> {
        self.queries(py, &texts(queries, "query")?, query_maxlen)?.each(py)
    }

    #[pyo3(signature = (texts, *, doc_maxlen=None, overlap=0))]
    fn split(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::doc_maxlen)] doc_maxlen: Option<usize>,
        #[pyo3(from_py_with = option::overlap)] overlap: usize,
    ) -> PyResult<Vec<Vec<String>>> {
        self.process.check("ColBERT")?;
        let texts = self::texts(texts, "text")?;
        run_on(py, self.inner.pool(), |cancel| {
            let pieces = self.inner.split(&texts, doc_maxlen, overlap, cancel)?;
            Ok(pieces.into_iter().map(|pieces| pieces.into_iter().map(str::to_owned).collect()).collect())
        })
    }

    #[pyo3(signature = (texts, *, doc_maxlen=None, pool_factor=1))]
    fn embed_documents<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = option::doc_maxlen)] doc_maxlen: Option<usize>,
        #[pyo3(from_py_with = option::pool_factor)] pool_factor: usize,
    ) -> PyResult<Bound<'py, PyList>> {
        let found = self.encode_documents(py, texts, doc_maxlen, pool_factor)?;
        let count = found.offsets.bind(py).len() - 1;
        warn(py, "documents", &found.truncated, count, doc_maxlen.unwrap_or(self.inner.doc_maxlen()))?;
        found.each(py)
    }

    #[pyo3(signature = (texts, *, doc_maxlen=None, pool_factor=1))]
    fn encode_documents(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::doc_maxlen)] doc_maxlen: Option<usize>,
        #[pyo3(from_py_with = option::pool_factor)] pool_factor: usize,
    ) -> PyResult<TokenVectors> {
        self.process.check("ColBERT")?;
        let texts = self::texts(texts, "document")?;
        let found = run_on(py, self.inner.pool(), |cancel| {
            self.inner.embed_documents(&texts, doc_maxlen, pool_factor, cancel)
        })?;
        TokenVectors::new(py, found, self.inner.dim())
    }

    fn maxsim<'py>(
        &self,
        py: Python<'py>,
        query_vectors: &Bound<'py, PyAny>,
        docs: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.process.check("ColBERT")?;
        let dim = self.inner.dim();
        let (queries, one) = match query_vectors.cast::<TokenVectors>() {
            Ok(queries) => (Ragged::of(queries.as_any(), "queries", dim)?, false),
            Err(_) => Ragged::of_queries(query_vectors, dim)?,
        };
        let docs = Ragged::of(docs, "docs", dim)?;
        let (vectors, offsets) = (docs.vectors.readonly(), &docs.offsets);
        let (numbers, spans) = (queries.vectors.readonly(), &queries.offsets);
        let (vectors, numbers) = (vectors.as_slice()?, numbers.as_slice()?);
        check(spans, numbers.len() / dim)?;
        let queries: Vec<&[f32]> = spans.windows(2).map(|span| &numbers[span[0] * dim..span[1] * dim]).collect();
        let scores = run_on(py, self.inner.pool(), |cancel| self.inner.maxsim(&queries, vectors, offsets, cancel))?;
        let scores = scores.into_pyarray(py);
        if one {
            return Ok(scores.into_any());
        }
        Ok(scores.reshape([queries.len(), offsets.len() - 1])?.into_any())
    }

    fn scores<'py>(
        &self,
        py: Python<'py>,
        query: &Bound<'py, PyAny>,
        docs: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let (query, docs) = (text(query, "the query")?, texts(docs, "document")?);
        Ok(self.compare(py, &query, &docs)?.into_pyarray(py))
    }

    #[pyo3(signature = (query, docs, *, doc_ids=None, metadata=None))]
    fn rank<'py>(
        &self,
        py: Python<'py>,
        query: &Bound<'py, PyAny>,
        docs: &Bound<'py, PyAny>,
        doc_ids: Option<&Bound<'py, PyAny>>,
        metadata: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (query, docs) = (text(query, "the query")?, texts(docs, "document")?);
        let scores = self.compare(py, &query, &docs)?;
        let options = [("doc_ids", doc_ids), ("metadata", metadata)].into_py_dict(py)?;
        let docs: Vec<&str> = docs.iter().map(AsRef::as_ref).collect();
        let ranking = py.import("adventures.ranking")?.getattr("Ranking")?;
        ranking.call_method("of", (&*query, docs, scores), Some(&options))
    }

    fn heat(&self, py: Python<'_>, query: &Bound<'_, PyAny>, doc: &Bound<'_, PyAny>) -> PyResult<HeatMap> {
        self.process.check("ColBERT")?;
        let (query, doc) = (text(query, "the query")?, text(doc, "the document")?);
        let found = run_on(py, self.inner.pool(), |cancel| self.inner.heat(&query, &doc, cancel))?;
        let shape = [found.query_tokens.len(), found.doc_tokens.len()];
        let similarities = found.similarities.into_pyarray(py).reshape(shape)?.unbind();
        Ok(HeatMap { query_tokens: found.query_tokens, doc_tokens: found.doc_tokens, similarities })
    }

    fn __repr__(&self) -> String {
        format!(
            "ColBERT({:?}, dim={}, query_maxlen={}, doc_maxlen={}, device={:?})",
            self.name,
            self.inner.dim(),
            self.inner.query_maxlen(),
            self.inner.doc_maxlen(),
            self.inner.device()
        )
    }
}

impl ColBERT {
    fn queries(&self, py: Python<'_>, queries: &[PyBackedStr], maxlen: Option<usize>) -> PyResult<TokenVectors> {
        self.process.check("ColBERT")?;
        let found = run_on(py, self.inner.pool(), |cancel| self.inner.embed_queries(queries, maxlen, cancel))?;
        let maxlen = maxlen.unwrap_or(self.inner.query_maxlen());
        warn(py, "queries", &found.truncated, queries.len(), maxlen)?;
        TokenVectors::new(py, found, self.inner.dim())
    }

    fn compare(&self, py: Python<'_>, query: &PyBackedStr, docs: &[PyBackedStr]) -> PyResult<Vec<f32>> {
        self.process.check("ColBERT")?;
        let (query, docs, scores) = run_on(py, self.inner.pool(), |cancel| {
            let query = self.inner.embed_queries(&[query], None, cancel)?;
            let docs = self.inner.embed_documents(docs, None, 1, cancel)?;
            let scores = self.inner.maxsim(&[&query.vectors], &docs.vectors, &docs.offsets, cancel)?;
            Ok((query, docs, scores))
        })?;
        warn(py, "queries", &query.truncated, 1, self.inner.query_maxlen())?;
        warn(py, "documents", &docs.truncated, scores.len(), self.inner.doc_maxlen())?;
        Ok(scores)
    }
}

impl TokenVectors {
    fn new(py: Python<'_>, found: adventures::TokenVectors, dim: usize) -> PyResult<Self> {
        let tokens = found.vectors.len() / dim;
        let offsets: Vec<i64> = found.offsets.into_iter().map(|offset| offset as i64).collect();
        Ok(Self {
            vectors: found.vectors.into_pyarray(py).reshape([tokens, dim])?.unbind(),
            offsets: offsets.into_pyarray(py).unbind(),
            truncated: found.truncated,
        })
    }

    /// Returns the rows of each text, without copying them.
    fn each<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let offsets = self.offsets.bind(py).readonly();
        let list = PyList::empty(py);
        for span in offsets.as_slice()?.windows(2) {
            list.append(self.vectors.bind(py).get_item(PySlice::new(py, span[0] as isize, span[1] as isize, 1))?)?;
        }
        Ok(list)
    }
}

#[pymethods]
impl TokenVectors {
    fn __len__(&self, py: Python<'_>) -> usize {
        self.offsets.bind(py).len() - 1
    }

    fn __getitem__<'py>(&self, py: Python<'py>, at: isize) -> PyResult<Bound<'py, PyAny>> {
        let count = self.__len__(py);
        let i = if at < 0 { at + count as isize } else { at };
        let found = usize::try_from(i).ok().filter(|i| *i < count);
        let i = found.ok_or_else(|| PyIndexError::new_err(format!("text {at} of {count}")))?;
        let offsets = self.offsets.bind(py).readonly();
        let (from, to) = (offsets.as_slice()?[i], offsets.as_slice()?[i + 1]);
        self.vectors.bind(py).get_item(PySlice::new(py, from as isize, to as isize, 1))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (texts, shape) = (self.__len__(py), self.vectors.bind(py).getattr("shape")?);
        Ok(format!("TokenVectors({texts} texts, vectors of shape {shape}, {} texts truncated)", self.truncated.len()))
    }
}

#[pymethods]
impl HeatMap {
    fn __repr__(&self) -> String {
        format!("HeatMap({} query tokens, {} document tokens)", self.query_tokens.len(), self.doc_tokens.len())
    }
}

/// Texts' vectors as Python has them, end to end.
struct Ragged<'py> {
    vectors: Bound<'py, PyArrayDyn<f32>>,
    offsets: Vec<usize>,
}

impl<'py> Ragged<'py> {
    /// Reads a `TokenVectors`, `(vectors, offsets)`, or an iterable of matrices; the first two are not copied.
    fn of(value: &Bound<'py, PyAny>, name: &str, dim: usize) -> PyResult<Self> {
        let py = value.py();
        if let Ok(found) = value.cast::<TokenVectors>() {
            let found = found.get();
            return Self::flat(found.vectors.bind(py).as_any(), found.offsets.bind(py).as_any(), name, dim);
        }
        if let Ok(pair) = value.cast::<PyTuple>()
            && pair.len() == 2
            && pair.get_item(1)?.getattr_opt("ndim")?.is_some_and(|ndim| ndim.extract().is_ok_and(|n: usize| n == 1))
        {
            return Self::flat(&pair.get_item(0)?, &pair.get_item(1)?, name, dim);
        }
        let items = value.try_iter().map_err(|_| {
            PyTypeError::new_err(format!(
                "{name}: expected TokenVectors, (vectors, offsets) or arrays of (tokens, {dim})"
            ))
        })?;
        let (mut numbers, mut offsets) = (Vec::new(), vec![0]);
        for (i, item) in items.enumerate() {
            let rows = matrix(&item?, &format!("{name}[{i}]"), dim)?;
            numbers.extend_from_slice(rows.readonly().as_slice()?);
            offsets.push(numbers.len() / dim);
        }
        let rows = numbers.len() / dim;
        Ok(Self { vectors: numbers.into_pyarray(py).reshape([rows, dim])?.to_dyn().clone(), offsets })
    }

    fn flat(vectors: &Bound<'py, PyAny>, offsets: &Bound<'py, PyAny>, name: &str, dim: usize) -> PyResult<Self> {
        let wrong = |_| PyValueError::new_err(format!("{name}: offsets must be counts of tokens"));
        let options = [("dtype", "int64"), ("casting", "safe")].into_py_dict(vectors.py())?;
        let offsets = offsets.call_method("astype", (), Some(&options)).map_err(wrong)?;
        let offsets = offsets.cast_into::<PyArray1<i64>>()?.to_vec()?;
        let offsets = offsets.into_iter().map(usize::try_from).collect::<Result<_, _>>();
        let offsets =
            offsets.map_err(|_| PyValueError::new_err(format!("{name}: offsets must be counts of tokens")))?;
        Ok(Self { vectors: matrix(vectors, name, dim)?, offsets })
    }

    /// Reads one query, `(tokens, dim)`, or several, `(queries, tokens, dim)`; says whether it is one.
    fn of_queries(value: &Bound<'py, PyAny>, dim: usize) -> PyResult<(Self, bool)> {
        let vectors = floats(value)?;
        let (offsets, one) = match *vectors.shape() {
            [tokens, width] if width == dim => (vec![0, tokens], true),
            [queries, tokens, width] if width == dim => ((0..=queries).map(|i| i * tokens).collect(), false),
            ref shape => {
                return Err(PyValueError::new_err(format!(
                    "query_vectors has shape {shape:?}: expected (tokens, {dim}) or (queries, tokens, {dim})"
                )));
            }
        };
        Ok((Self { vectors, offsets }, one))
    }
}

/// Fails where `offsets` are none of rows of `tokens`.
fn check(offsets: &[usize], tokens: usize) -> PyResult<()> {
    if offsets.windows(2).any(|span| span[0] > span[1]) || offsets.last().is_none_or(|last| *last > tokens) {
        return Err(PyValueError::new_err(format!("queries: offsets must not fall, nor go beyond {tokens} tokens")));
    }
    Ok(())
}

fn floats<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let py = value.py();
    let options = [("dtype", "float32")].into_py_dict(py)?;
    let array = py.import("numpy")?.call_method("ascontiguousarray", (value,), Some(&options))?;
    Ok(array.cast_into::<PyArrayDyn<f32>>()?)
}

/// Returns an array as `(tokens, dim)`; one that is not of f32 or not contiguous is copied.
fn matrix<'py>(value: &Bound<'py, PyAny>, name: &str, dim: usize) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let vectors = floats(value)?;
    match *vectors.shape() {
        [_, width] if width == dim => Ok(vectors),
        ref shape => Err(PyValueError::new_err(format!("{name} has shape {shape:?}: expected (tokens, {dim})"))),
    }
}

fn warn(py: Python<'_>, what: &str, truncated: &[usize], texts: usize, maxlen: usize) -> PyResult<()> {
    let Some(first) = truncated.first() else { return Ok(()) };
    let cut = truncated.len();
    let message =
        format!("{cut} of {texts} {what} were longer than {maxlen} tokens and were cut; the first is number {first}");
    PyErr::warn(py, py.get_type::<TruncationWarning>().as_any(), &CString::new(message)?, 1)
}
