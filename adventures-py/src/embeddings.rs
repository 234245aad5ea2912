//! `adventures.EmbeddingStream`.

use crate::convert::type_name;
use crate::embedder::{Embedder, Embeddings};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyList, PyString};

/// The vectors of texts that are read as they are needed; the stub has its documentation.
#[pyclass(frozen, module = "adventures")]
pub(crate) struct EmbeddingStream {
    embedder: Py<Embedder>,
    texts: Py<PyIterator>,
    kind: String,
    batch: usize,
}

impl EmbeddingStream {
    pub(crate) fn new(
        embedder: Bound<'_, Embedder>,
        texts: &Bound<'_, PyAny>,
        kind: &str,
        batch: usize,
    ) -> PyResult<Self> {
        if batch == 0 {
            return Err(PyValueError::new_err("batch=0: at least one text is needed"));
        }
        let refused = || PyTypeError::new_err(format!("texts must be an iterable of str, not {}", type_name(texts)));
        if texts.is_instance_of::<PyString>() {
            return Err(refused());
        }
        let texts = texts.try_iter().map_err(|_| refused())?.unbind();
        Ok(Self { embedder: embedder.unbind(), texts, kind: kind.to_owned(), batch })
    }
}

#[pymethods]
impl EmbeddingStream {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Embeddings>> {
        let texts = PyList::empty(py);
        for text in self.texts.bind(py).clone().take(self.batch) {
            texts.append(text?)?;
        }
        if texts.is_empty() {
            return Ok(None);
        }
        self.embedder.get().encode(py, texts.as_any(), &self.kind).map(Some)
    }
}
