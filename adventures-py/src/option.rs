//! Readers of keyword arguments: what they refuse is refused by the argument's name and its value.
//!
//! PyO3's own conversions say "int too big to convert" and leave the reader to guess of what.

use crate::convert::{shown, type_name};
use adventures::Quantize;
use pyo3::exceptions::{PyNotImplementedError, PyOverflowError, PyRecursionError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict, PyMapping, PyString};
use std::collections::BTreeMap;

/// Makes `fn name(value)` out of `read("name", value)`: PyO3 does not tell a reader which argument it reads.
macro_rules! named {
    ($($function:ident($name:literal) -> $type:ty = $read:path;)*) => { $(
        pub(crate) fn $function(value: &Bound<'_, PyAny>) -> PyResult<$type> {
            $read($name, value)
        }
    )* };
}

named! {
    max_tokens("max_tokens") -> usize = count;
    max_tokens_or_none("max_tokens") -> Option<usize> = count_or_none;
    overlap("overlap") -> usize = count;
    threads("threads") -> Option<usize> = count_or_none;
    dim("dim") -> Option<usize> = count_or_none;
    query_maxlen("query_maxlen") -> Option<usize> = count_or_none;
    doc_maxlen("doc_maxlen") -> Option<usize> = count_or_none;
    pool_factor("pool_factor") -> usize = count;
    batch("batch") -> usize = count;
    normalize("normalize") -> bool = flag;
    context("context") -> Option<usize> = count_or_none;
    slots("slots") -> usize = count;
    prefix_bytes("prefix_bytes") -> usize = count;
    top_k("top_k") -> usize = count;
    k("k") -> usize = count;
    nbits("nbits") -> usize = count;
    probes("probes") -> Option<usize> = count_or_none;
    candidates("candidates") -> Option<usize> = count_or_none;
    index_seed("seed") -> u64 = whole;
    repeat_window("repeat_window") -> usize = count;
    logprobs("logprobs") -> Option<usize> = count_or_none;
    seed("seed") -> Option<u64> = whole_or_none;
    temperature("temperature") -> f64 = number;
    top_p("top_p") -> f64 = number;
    min_p("min_p") -> f64 = number;
    typical_p("typical_p") -> f64 = number;
    repeat_penalty("repeat_penalty") -> f64 = number;
    frequency_penalty("frequency_penalty") -> f64 = number;
    presence_penalty("presence_penalty") -> f64 = number;
    prompt_lookup("prompt_lookup") -> bool = flag;
    query_prefix("query_prefix") -> Option<String> = owned_or_none;
    pattern("pattern") -> Option<String> = owned_or_none;
    passage_prefix("passage_prefix") -> Option<String> = owned_or_none;
}

pub(crate) fn revision<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<Option<&'a str>> {
    text_or_none("revision", value)
}

/// Returns the name of a device; fails where it is that of a card and this build has no CUDA.
pub(crate) fn device<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    let name = text("device", value)?;
    if !cfg!(feature = "cuda") && name.starts_with("cuda") {
        // What the package found when it looked for the build that has.
        let missing: String = value.py().import("adventures.cuda")?.call_method0("missing")?.extract()?;
        return Err(PyNotImplementedError::new_err(format!("device {name:?}: {missing}")));
    }
    Ok(name)
}

pub(crate) fn system<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<Option<&'a str>> {
    text_or_none("system", value)
}

/// Returns what matrices are rounded to.
pub(crate) fn quantize(value: &Bound<'_, PyAny>) -> PyResult<Option<Quantize>> {
    let name = text_or_none("quantize", value)?;
    name.map(|name| name.parse().map_err(|e: adventures::Error| PyValueError::new_err(e.to_string()))).transpose()
}

pub(crate) fn precision<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    text("precision", value)
}

pub(crate) fn model_type<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<Option<&'a str>> {
    text_or_none("model_type", value)
}

pub(crate) fn activation<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<Option<&'a str>> {
    text_or_none("activation", value)
}

pub(crate) fn kind<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    text("kind", value)
}

pub(crate) fn prefix<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    text("prefix", value)
}

/// Returns the biases of a mapping of token ids to numbers.
pub(crate) fn logit_bias(value: &Bound<'_, PyAny>) -> PyResult<Option<BTreeMap<u32, f64>>> {
    if value.is_none() {
        return Ok(None);
    }
    let mapping = value.cast::<PyMapping>().map_err(|_| {
        let (shown, type_name) = (shown(value), type_name(value));
        PyTypeError::new_err(format!("logit_bias={shown}: expected a mapping of token ids to numbers, not {type_name}"))
    })?;
    let bias = mapping.items()?.iter().map(|item| {
        let (key, bias): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        let id = token(&format!("logit_bias[{}]", shown(&key)), &key)?;
        Ok((id, number(&format!("logit_bias[{id}]"), &bias)?))
    });
    bias.collect::<PyResult<_>>().map(Some)
}

/// Returns the JSON of a JSON schema.
pub(crate) fn schema(value: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
    if value.is_none() {
        return Ok(None);
    }
    if !value.is_instance_of::<PyDict>() {
        let (shown, type_name) = (shown(value), type_name(value));
        return Err(PyTypeError::new_err(format!("schema={shown}: expected a JSON schema as a dict, not {type_name}")));
    }
    json("schema", value).map(Some)
}

/// Returns the JSON of a value; `name` is what an error calls it.
pub(crate) fn json(name: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    let py = value.py();
    let options = [("allow_nan", false)].into_py_dict(py)?;
    let json = py.import("json")?.call_method("dumps", (value,), Some(&options));
    // What json cannot write raises one of these; an interrupt and the like goes on as it is.
    let json = json.map_err(|e| {
        let named = format!("{name}: not JSON: {}", e.value(py));
        if e.is_instance_of::<PyTypeError>(py) {
            PyTypeError::new_err(named)
        } else if e.is_instance_of::<PyValueError>(py) || e.is_instance_of::<PyRecursionError>(py) {
            PyValueError::new_err(named)
        } else {
            e
        }
    })?;
    json.extract()
}

/// Returns the texts of which an answer is one.
pub(crate) fn choices(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<String>>> {
    if value.is_none() {
        return Ok(None);
    }
    let items = value.try_iter().ok().filter(|_| !value.is_instance_of::<PyString>()).ok_or_else(|| {
        let (shown, type_name) = (shown(value), type_name(value));
        PyTypeError::new_err(format!("choices={shown}: expected an iterable of str, not {type_name}"))
    })?;
    items
        .enumerate()
        .map(|(i, item)| Ok(text(&format!("choices[{i}]"), &item?)?.to_owned()))
        .collect::<PyResult<_>>()
        .map(Some)
}

/// Returns the ids of an iterable.
pub(crate) fn ids(value: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let items = value.try_iter().map_err(|_| {
        let (shown, type_name) = (shown(value), type_name(value));
        PyTypeError::new_err(format!("ids={shown}: expected an iterable of token ids, not {type_name}"))
    })?;
    let ids = items.enumerate().map(|(i, item)| {
        let item = item?;
        token(&format!("ids[{i}]={}", shown(&item)), &item)
    });
    ids.collect()
}

/// Returns a token's id; `place` is where it stands.
fn token(place: &str, value: &Bound<'_, PyAny>) -> PyResult<u32> {
    value.extract().map_err(|e| refused(&e, value, &format!("{place}: expected the id of a token")))
}

fn count(name: &str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    // Every platform of the wheel has 64 bits; elsewhere a larger number would not be a count of anything either.
    Ok(usize::try_from(whole(name, value)?).unwrap_or(usize::MAX))
}

fn count_or_none(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
    if value.is_none() { Ok(None) } else { count(name, value).map(Some) }
}

fn whole_or_none(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
    if value.is_none() { Ok(None) } else { whole(name, value).map(Some) }
}

fn whole(name: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    let expected = || format!("{name}={}: expected a whole number from 0 to {}", shown(value), u64::MAX);
    value.extract::<u64>().map_err(|e| refused(&e, value, &expected()))
}

fn flag(name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    let expected = || format!("{name}={}: expected True or False", shown(value));
    value.extract().map_err(|e| refused(&e, value, &expected()))
}

fn number(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    let expected = || format!("{name}={}: expected a number", shown(value));
    let number = value.extract::<f64>().map_err(|e| refused(&e, value, &expected()))?;
    if number.is_nan() {
        return Err(PyValueError::new_err(expected()));
    }
    Ok(number)
}

/// Returns a refusal of the kind that the conversion's own error is of.
fn refused(error: &PyErr, value: &Bound<'_, PyAny>, expected: &str) -> PyErr {
    if error.is_instance_of::<PyOverflowError>(value.py()) {
        return PyValueError::new_err(expected.to_owned());
    }
    PyTypeError::new_err(format!("{expected}, not {}", type_name(value)))
}

fn owned_or_none(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
    Ok(text_or_none(name, value)?.map(str::to_owned))
}

fn text_or_none<'a>(name: &str, value: &'a Bound<'_, PyAny>) -> PyResult<Option<&'a str>> {
    if value.is_none() { Ok(None) } else { text(name, value).map(Some) }
}

fn text<'a>(name: &str, value: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    let expected =
        || PyTypeError::new_err(format!("{name}={}: expected a str, not {}", shown(value), type_name(value)));
    let text = value.cast::<PyString>().map_err(|_| expected())?;
    text.to_str().map_err(|e| PyValueError::new_err(format!("{name} is not valid Unicode: {}", e.value(value.py()))))
}
