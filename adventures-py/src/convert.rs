//! Python values to Rust ones.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyString};
use std::path::PathBuf;

/// Returns the texts of a `str` or an iterable of `str`, without copying them; `name` is what an error calls one of them.
pub(crate) fn texts(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Vec<PyBackedStr>> {
    if let Ok(one) = value.cast::<PyString>() {
        return Ok(vec![text(one.as_any(), &format!("the {name}"))?]);
    }
    let items = value.try_iter().map_err(|_| {
        PyTypeError::new_err(format!("{name}s must be a str or an iterable of str, not {}", type_name(value)))
    })?;
    items.enumerate().map(|(i, item)| text(&item?, &format!("{name} {i}"))).collect()
}

/// Returns a `str` as UTF-8; `name` is what an error calls it.
pub(crate) fn text(value: &Bound<'_, PyAny>, name: &str) -> PyResult<PyBackedStr> {
    if !value.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(format!("{name} is {}, not str", type_name(value))));
    }
    value
        .extract()
        .map_err(|e: PyErr| PyValueError::new_err(format!("{name} is not valid Unicode: {}", e.value(value.py()))))
}

/// Returns the name of a value's type.
pub(crate) fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "an object".to_owned(), |name| name.to_string())
}

/// Returns how Python writes `value`, cut where it is long. An object that does not say what it is, or says it with a
/// lone surrogate, is named by its type.
pub(crate) fn shown(value: &Bound<'_, PyAny>) -> String {
    const LONGEST: usize = 60;
    let written = value.repr().ok().and_then(|repr| repr.to_str().ok().map(str::to_owned));
    let written = written.unwrap_or_else(|| format!("<{}>", type_name(value)));
    match written.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &written[..end]),
        None => written,
    }
}

/// Where a model lies and what the catalogue says of it.
pub(crate) struct Located<'py> {
    pub(crate) path: PathBuf,
    /// Directories of adapters, in the order in which they are merged.
    pub(crate) adapters: Vec<PathBuf>,
    pub(crate) name: String,
    pub(crate) revision: String,
    pub(crate) profile: Bound<'py, PyDict>,
}

/// Asks `adventures.models.locate` for a model: a catalogue name, a hub id or a path; and for an adapter of it, if any.
pub(crate) fn locate<'py>(
    model: &Bound<'py, PyAny>,
    revision: Option<&str>,
    kind: &str,
    adapter: Option<&Bound<'py, PyAny>>,
) -> PyResult<Located<'py>> {
    let py = model.py();
    let options = PyDict::new(py);
    options.set_item("revision", revision)?;
    options.set_item("kind", kind)?;
    options.set_item("adapter", adapter)?;
    let found = py.import("adventures.models")?.call_method("locate", (model,), Some(&options))?;
    Ok(Located {
        path: found.getattr("path")?.extract()?,
        adapters: found.getattr("adapters")?.extract()?,
        name: found.getattr("name")?.extract()?,
        revision: found.getattr("revision")?.extract()?,
        profile: found.getattr("profile")?.cast_into::<PyDict>()?,
    })
}

/// Returns `profile[key]`, `None` where it is absent.
pub(crate) fn profile_value<'py, T>(profile: &Bound<'py, PyDict>, key: &str) -> PyResult<Option<T>>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    profile.get_item(key)?.map(|value| value.extract()).transpose()
}
