//! The text of a cited answer, for `adventures.chat`.

use crate::boundary::guard;
use crate::convert::{text, texts};
use crate::error::PyError;
use crate::option;
use adventures::{Error, Message, PromptRequest, Turn};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict, PyList};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How to prompt a model; the stub has its documentation.
#[pyclass(frozen, module = "adventures._adventures")]
pub(crate) struct Profile(adventures::Profile);

/// What a generator reads; the stub has its documentation.
#[pyclass(frozen, get_all, module = "adventures._adventures")]
pub(crate) struct Prompt {
    messages: Py<PyList>,
    passages: usize,
    dropped: usize,
}

/// Citations in streamed text; the stub has its documentation.
#[pyclass(frozen, module = "adventures._adventures")]
pub(crate) struct CitationFilter(Mutex<adventures::CitationFilter>);

#[pymethods]
impl Profile {
    #[staticmethod]
    fn of(generator: &Bound<'_, PyAny>) -> PyResult<Self> {
        let model: String = generator.getattr("name")?.extract()?;
        let json = option::json(&format!("the chat profile of {model}"), &generator.getattr("profile")?)?;
        guard(|| {
            let table = json
                .parse()
                .map_err(|e: serde_json::Error| Error::Invalid(format!("the chat profile of {model}: {e}")))?;
            adventures::Profile::read(model, &table)
        })
        .map(Self)
    }

    #[getter]
    fn passages(&self) -> Option<usize> {
        self.0.passages
    }

    #[getter]
    fn prefix(&self) -> &str {
        &self.0.prefix
    }
}

#[pymethods]
impl Prompt {
    #[staticmethod]
    #[pyo3(signature = (generator, profile, *, question, passages, history=Vec::new(), system=None, reserve=512))]
    fn build(
        generator: &Bound<'_, PyAny>,
        profile: &Profile,
        question: &Bound<'_, PyAny>,
        passages: &Bound<'_, PyAny>,
        history: Vec<(String, String)>,
        #[pyo3(from_py_with = option::system)] system: Option<&str>,
        // It is the answer's `max_tokens`, and refused under the name that a caller of `Chat` knows.
        #[pyo3(from_py_with = option::max_tokens)] reserve: usize,
    ) -> PyResult<Self> {
        let py = generator.py();
        let question = text(question, "the question")?;
        let passages = texts(passages, "passage")?;
        let passages: Vec<&str> = passages.iter().map(|passage| &**passage).collect();
        let history: Vec<Turn> = history.into_iter().map(|(question, answer)| Turn { question, answer }).collect();
        let request = PromptRequest { question: &question, passages: &passages, history: &history, system, reserve };
        let context: usize = generator.getattr("context")?.extract()?;
        let prefix = [("prefix", &profile.0.prefix)].into_py_dict(py)?;
        let count = |messages: &[Message]| -> PyResult<usize> {
            generator.call_method("count_prompt", (dicts(py, messages)?,), Some(&prefix))?.extract()
        };
        let mut raised = None;
        let prompt = guard(|| {
            // Whatever it raises ends the search, and goes on below as it is.
            Ok(adventures::Prompt::fit(context, &profile.0, &request, |messages| {
                count(messages).map_err(|e| {
                    raised = Some(e);
                    Error::Cancelled
                })
            }))
        })?;
        match (raised, prompt) {
            (Some(raised), _) => Err(raised),
            (None, Err(error)) => Err(PyError(error).into()),
            (None, Ok(prompt)) => Ok(Self {
                messages: dicts(py, &prompt.messages)?.unbind(),
                passages: prompt.passages,
                dropped: prompt.dropped,
            }),
        }
    }
}

fn dicts<'py>(py: Python<'py>, messages: &[Message]) -> PyResult<Bound<'py, PyList>> {
    let dict = |message: &Message| -> PyResult<Bound<'py, PyDict>> {
        [("role", message.role.to_string().as_str()), ("content", &message.content)].into_py_dict(py)
    };
    PyList::new(py, messages.iter().map(dict).collect::<PyResult<Vec<_>>>()?)
}

#[pymethods]
impl CitationFilter {
    #[new]
    #[pyo3(signature = (count, *, always=false))]
    fn new(count: usize, always: bool) -> Self {
        let filter = adventures::CitationFilter::new(count);
        Self(Mutex::new(if always { filter.always() } else { filter }))
    }

    fn feed(&self, piece: &Bound<'_, PyAny>) -> PyResult<String> {
        let piece = text(piece, "the piece")?;
        guard(|| Ok(self.filter().feed(&piece)))
    }

    fn finish(&self) -> PyResult<String> {
        guard(|| Ok(self.filter().finish()))
    }

    #[getter]
    fn cited(&self) -> Vec<usize> {
        self.filter().cited().to_vec()
    }
}

impl CitationFilter {
    fn filter(&self) -> MutexGuard<'_, adventures::CitationFilter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a question is understood only after the one before it; the stub has its documentation.
#[pyfunction]
pub(crate) fn leans(question: &str) -> bool {
    adventures::leans(question)
}
