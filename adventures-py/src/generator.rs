//! `adventures.Generator` and its streams.

use crate::boundary::{Process, SIGNAL_PERIOD, guard, run};
use crate::convert::{locate, shown, text, texts};
use crate::logprob::TokenLogprob;
use crate::option;
use adventures::{GenerateOptions, GeneratorOptions, Message, Next, Quantize, SamplingOptions};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyMapping, PyString};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A model that writes; the stub has its documentation.
#[pyclass(frozen, module = "adventures")]
pub(crate) struct Generator {
    inner: adventures::Generator,
    process: Process,
    #[pyo3(get)]
    name: String,
    #[pyo3(get)]
    revision: String,
    #[pyo3(get)]
    path: String,
    #[pyo3(get)]
    profile: Py<PyDict>,
}

/// A running answer; the stub has its documentation.
#[pyclass(frozen, module = "adventures")]
pub(crate) struct Generation {
    inner: Mutex<adventures::Generation>,
    /// All that was read so far, for `text`.
    read: Mutex<String>,
    /// All that were read so far.
    logprobs: Py<PyList>,
    process: Process,
}

/// What an answer has cost; the stub has its documentation.
#[pyclass(frozen, get_all, module = "adventures")]
pub(crate) struct GenerationStats {
    prompt_tokens: usize,
    read_tokens: usize,
    cached_tokens: usize,
    generated_tokens: usize,
    drafted_tokens: usize,
    accepted_tokens: usize,
    prompt_seconds: f64,
    seconds: f64,
    seed: u64,
    finish_reason: Option<&'static str>,
}

/// Returns the messages of a conversation: a `str` is one question.
fn messages(value: &Bound<'_, PyAny>) -> PyResult<Vec<Message>> {
    if value.is_instance_of::<PyString>() {
        return Ok(vec![Message::new(adventures::Role::User, &*text(value, "the message")?)]);
    }
    let turns = value
        .try_iter()
        .map_err(|_| PyTypeError::new_err("messages must be a str or a sequence of {\"role\": …, \"content\": …}"))?;
    turns.enumerate().map(|(i, turn)| message(i, &turn?)).collect()
}

fn message(i: usize, turn: &Bound<'_, PyAny>) -> PyResult<Message> {
    let turn = turn.cast::<PyMapping>().map_err(|_| {
        PyTypeError::new_err(format!("message {i} must be {{\"role\": …, \"content\": …}}, not {}", shown(turn)))
    })?;
    let field = |name: &str| {
        let value = turn.get_item(name).map_err(|_| PyValueError::new_err(format!("message {i} has no {name:?}")))?;
        text(&value, &format!("the {name} of message {i}"))
    };
    let role = field("role")?.parse().map_err(|e| PyValueError::new_err(format!("message {i}: {e}")))?;
    Ok(Message::new(role, &*field("content")?))
}

/// Returns the stop texts of a `str`, an iterable of `str`, or None.
fn stops(value: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<String>> {
    let stops = value.map(|value| texts(value, "stop text")).transpose()?.unwrap_or_default();
    Ok(stops.iter().map(|stop| (**stop).to_owned()).collect())
}

#[pymethods]
impl Generator {
    #[new]
    #[pyo3(signature = (model, *, revision=None, device="auto", threads=None, context=None, slots=4, prefix_bytes=268_435_456, adapter=None, quantize=None))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn new(
        model: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::revision)] revision: Option<&str>,
        #[pyo3(from_py_with = option::device)] device: &str,
        #[pyo3(from_py_with = option::threads)] threads: Option<usize>,
        #[pyo3(from_py_with = option::context)] context: Option<usize>,
        #[pyo3(from_py_with = option::slots)] slots: usize,
        #[pyo3(from_py_with = option::prefix_bytes)] prefix_bytes: usize,
        adapter: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = option::quantize)] quantize: Option<Quantize>,
    ) -> PyResult<Self> {
        let found = locate(model, revision, "generator", adapter)?;
        let options = GeneratorOptions {
            device: device.to_owned(),
            threads,
            context,
            slots: Some(slots),
            prefix_bytes: Some(prefix_bytes),
            adapters: found.adapters,
            quantize,
        };
        let path: &Path = &found.path;
        let inner = run(model.py(), |_| adventures::Generator::load(path, &options))?;
        Ok(Self {
            inner,
            process: Process::current(),
            name: found.name,
            revision: found.revision,
            path: found.path.display().to_string(),
            profile: found.profile.unbind(),
        })
    }

    #[getter]
    fn architecture(&self) -> &str {
        self.inner.architecture()
    }

    #[getter]
    fn context(&self) -> usize {
        self.inner.context()
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    #[getter]
    fn kept_bytes(&self) -> usize {
        self.inner.kept_bytes()
    }

    #[getter]
    fn threads(&self) -> usize {
        self.inner.threads()
    }

    #[getter]
    fn device(&self) -> &str {
        self.inner.device()
    }

    #[pyo3(signature = (messages, *, max_tokens=512, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, typical_p=1.0, repeat_penalty=1.0, repeat_window=64, frequency_penalty=0.0, presence_penalty=0.0, logit_bias=None, seed=None, stop=None, logprobs=None, prompt_lookup=true, prefix="", schema=None, pattern=None, choices=None))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn generate(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::max_tokens)] max_tokens: usize,
        #[pyo3(from_py_with = option::temperature)] temperature: f64,
        #[pyo3(from_py_with = option::top_p)] top_p: f64,
        #[pyo3(from_py_with = option::top_k)] top_k: usize,
        #[pyo3(from_py_with = option::min_p)] min_p: f64,
        #[pyo3(from_py_with = option::typical_p)] typical_p: f64,
        #[pyo3(from_py_with = option::repeat_penalty)] repeat_penalty: f64,
        #[pyo3(from_py_with = option::repeat_window)] repeat_window: usize,
        #[pyo3(from_py_with = option::frequency_penalty)] frequency_penalty: f64,
        #[pyo3(from_py_with = option::presence_penalty)] presence_penalty: f64,
        #[pyo3(from_py_with = option::logit_bias)] logit_bias: Option<BTreeMap<u32, f64>>,
        #[pyo3(from_py_with = option::seed)] seed: Option<u64>,
        stop: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = option::logprobs)] logprobs: Option<usize>,
        #[pyo3(from_py_with = option::prompt_lookup)] prompt_lookup: bool,
        #[pyo3(from_py_with = option::prefix)] prefix: &str,
        #[pyo3(from_py_with = option::schema)] schema: Option<String>,
        #[pyo3(from_py_with = option::pattern)] pattern: Option<String>,
        #[pyo3(from_py_with = option::choices)] choices: Option<Vec<String>>,
    ) -> PyResult<Generation> {
        let sampling = SamplingOptions {
            temperature,
            top_p,
            top_k,
            min_p,
            typical_p,
            repeat_penalty,
            repeat_window,
            frequency_penalty,
            presence_penalty,
            logit_bias: logit_bias.unwrap_or_default(),
            seed,
        };
        let options = GenerateOptions {
            max_tokens,
            sampling,
            stop: stops(stop)?,
            prefix: prefix.to_owned(),
            logprobs,
            prompt_lookup,
            schema,
            pattern,
            choices,
        };
        let messages = self::messages(messages)?;
        self.start(py, || self.inner.generate(&messages, options))
    }

    #[pyo3(signature = (prompt, *, max_tokens=512, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, typical_p=1.0, repeat_penalty=1.0, repeat_window=64, frequency_penalty=0.0, presence_penalty=0.0, logit_bias=None, seed=None, stop=None, logprobs=None, prompt_lookup=true, schema=None, pattern=None, choices=None))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn complete(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::max_tokens)] max_tokens: usize,
        #[pyo3(from_py_with = option::temperature)] temperature: f64,
        #[pyo3(from_py_with = option::top_p)] top_p: f64,
        #[pyo3(from_py_with = option::top_k)] top_k: usize,
        #[pyo3(from_py_with = option::min_p)] min_p: f64,
        #[pyo3(from_py_with = option::typical_p)] typical_p: f64,
        #[pyo3(from_py_with = option::repeat_penalty)] repeat_penalty: f64,
        #[pyo3(from_py_with = option::repeat_window)] repeat_window: usize,
        #[pyo3(from_py_with = option::frequency_penalty)] frequency_penalty: f64,
        #[pyo3(from_py_with = option::presence_penalty)] presence_penalty: f64,
        #[pyo3(from_py_with = option::logit_bias)] logit_bias: Option<BTreeMap<u32, f64>>,
        #[pyo3(from_py_with = option::seed)] seed: Option<u64>,
        stop: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = option::logprobs)] logprobs: Option<usize>,
        #[pyo3(from_py_with = option::prompt_lookup)] prompt_lookup: bool,
        #[pyo3(from_py_with = option::schema)] schema: Option<String>,
        #[pyo3(from_py_with = option::pattern)] pattern: Option<String>,
        #[pyo3(from_py_with = option::choices)] choices: Option<Vec<String>>,
    ) -> PyResult<Generation> {
        let sampling = SamplingOptions {
            temperature,
            top_p,
            top_k,
            min_p,
            typical_p,
            repeat_penalty,
            repeat_window,
            frequency_penalty,
            presence_penalty,
            logit_bias: logit_bias.unwrap_or_default(),
            seed,
        };
        let options = GenerateOptions {
            max_tokens,
            sampling,
            stop: stops(stop)?,
            prefix: String::new(),
            logprobs,
            prompt_lookup,
            schema,
            pattern,
            choices,
        };
        let prompt = text(prompt, "the prompt")?;
        self.start(py, || self.inner.complete(&prompt, options))
    }

    fn tokenize(&self, py: Python<'_>, text: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        let text = self::text(text, "the text")?;
        py.detach(|| guard(|| self.inner.tokenizer().encode(&text)))
    }

    fn detokenize(&self, py: Python<'_>, #[pyo3(from_py_with = option::ids)] ids: Vec<u32>) -> PyResult<String> {
        py.detach(move || guard(|| self.inner.tokenizer().decode(&ids)))
    }

    fn count_tokens(&self, py: Python<'_>, text: &Bound<'_, PyAny>) -> PyResult<usize> {
        let text = self::text(text, "the text")?;
        py.detach(|| guard(|| Ok(self.inner.tokenizer().encode(&text)?.len())))
    }

    #[pyo3(signature = (messages, *, prefix=""))]
    fn count_prompt(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = option::prefix)] prefix: &str,
    ) -> PyResult<usize> {
        let messages = self::messages(messages)?;
        py.detach(|| guard(|| Ok(self.inner.prompt(&messages, prefix)?.len())))
    }

    fn __repr__(&self) -> String {
        let (architecture, context, device) = (self.inner.architecture(), self.inner.context(), self.inner.device());
        format!("Generator({:?}, architecture={architecture:?}, context={context}, device={device:?})", self.name)
    }
}

impl Generator {
    fn start(
        &self,
        py: Python<'_>,
        f: impl FnOnce() -> adventures::Result<adventures::Generation> + Send,
    ) -> PyResult<Generation> {
        self.process.check("Generator")?;
        let inner = py.detach(|| guard(f))?;
        let logprobs = PyList::empty(py).unbind();
        Ok(Generation { inner: Mutex::new(inner), read: Mutex::default(), logprobs, process: self.process })
    }
}

#[pymethods]
impl Generation {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        self.process.check("Generation")?;
        loop {
            // In front of each wait, not only of those in vain: a loop in C, as in `"".join(answer)`, never looks for signals
            // itself, and a fast model never makes it wait.
            if let Err(signal) = py.check_signals() {
                self.close(py);
                return Err(signal);
            }
            match py.detach(|| self.wait(SIGNAL_PERIOD))? {
                Next::Piece(piece) => return Ok(Some(piece)),
                Next::End => return Ok(None),
                Next::Waiting => {}
            }
        }
    }

    fn __aiter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __anext__<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        this.py().import("adventures.stream")?.call_method1("next_piece", (this,))
    }

    /// Returns more text, an empty text where there is none yet, None at the end; never waits.
    fn _poll(&self, py: Python<'_>) -> PyResult<Option<String>> {
        self.process.check("Generation")?;
        match py.detach(|| self.wait(std::time::Duration::ZERO))? {
            Next::Piece(piece) => Ok(Some(piece)),
            Next::Waiting => Ok(Some(String::new())),
            Next::End => Ok(None),
        }
    }

    fn text(&self, py: Python<'_>) -> PyResult<String> {
        while self.__next__(py)?.is_some() {}
        Ok(self.read.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.lock().unwrap_or_else(PoisonError::into_inner).close());
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (exc_type, exc_value, traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        exc_type: Option<&Bound<'_, PyAny>>,
        exc_value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) {
        let _ = (exc_type, exc_value, traceback);
        self.close(py);
    }

    #[getter]
    fn logprobs<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        let read = self.logprobs.bind(py);
        let skip = read.len();
        let new = py.detach(|| self.inner.lock().unwrap_or_else(PoisonError::into_inner).logprobs(skip));
        let Some(new) = new else { return Ok(None) };
        let new: Vec<TokenLogprob> =
            new.into_iter().map(|token| TokenLogprob::new(py, token)).collect::<PyResult<_>>()?;
        // Another thread may have read the first of them meanwhile.
        for token in new.into_iter().skip(read.len() - skip) {
            read.append(token)?;
        }
        Ok(Some(read.get_slice(0, read.len())))
    }

    #[getter]
    fn stats(&self, py: Python<'_>) -> GenerationStats {
        let stats = py.detach(|| self.inner.lock().unwrap_or_else(PoisonError::into_inner).stats());
        GenerationStats {
            prompt_tokens: stats.prompt_tokens,
            read_tokens: stats.read_tokens,
            cached_tokens: stats.cached_tokens,
            generated_tokens: stats.generated_tokens,
            drafted_tokens: stats.drafted_tokens,
            accepted_tokens: stats.accepted_tokens,
            prompt_seconds: stats.prompt_seconds,
            seconds: stats.seconds,
            seed: stats.seed,
            finish_reason: stats.finish.map(adventures::Finish::name),
        }
    }
}

impl Generation {
    /// Waits for the next piece and keeps it for `text`.
    fn wait(&self, timeout: std::time::Duration) -> PyResult<Next> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let next = guard(|| inner.next(timeout))?;
        if let Next::Piece(piece) = &next {
            self.read.lock().unwrap_or_else(PoisonError::into_inner).push_str(piece);
        }
        Ok(next)
    }
}

#[pymethods]
impl GenerationStats {
    fn __repr__(&self) -> String {
        format!(
            "GenerationStats(prompt_tokens={}, read_tokens={}, cached_tokens={}, generated_tokens={}, drafted_tokens={}, accepted_tokens={}, prompt_seconds={:.3}, seconds={:.3}, seed={}, finish_reason={})",
            self.prompt_tokens,
            self.read_tokens,
            self.cached_tokens,
            self.generated_tokens,
            self.drafted_tokens,
            self.accepted_tokens,
            self.prompt_seconds,
            self.seconds,
            self.seed,
            self.finish_reason.map_or("None".to_owned(), |name| format!("{name:?}"))
        )
    }
}
