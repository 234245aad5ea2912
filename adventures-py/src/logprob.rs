//! `adventures.TokenLogprob`.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

/// How likely a token was; the stub has its documentation.
#[pyclass(frozen, get_all, module = "adventures")]
pub(crate) struct TokenLogprob {
    id: u32,
    bytes: Py<PyBytes>,
    logprob: f64,
    alternatives: Py<PyTuple>,
}

impl TokenLogprob {
    pub(crate) fn new(py: Python<'_>, token: adventures::TokenLogprob) -> PyResult<Self> {
        let alternatives: Vec<Self> =
            token.alternatives.into_iter().map(|token| Self::new(py, token)).collect::<PyResult<_>>()?;
        Ok(Self {
            id: token.id,
            bytes: PyBytes::new(py, &token.bytes).unbind(),
            logprob: token.logprob,
            alternatives: PyTuple::new(py, alternatives)?.unbind(),
        })
    }
}

#[pymethods]
impl TokenLogprob {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let bytes = self.bytes.bind(py).repr()?;
        Ok(format!("TokenLogprob(id={}, bytes={bytes}, logprob={:.4})", self.id, self.logprob))
    }
}
