//! Strings of Arrow, read where they lie.

use crate::convert::type_name;
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyAnyMethods};

/// The chunks of an Arrow array of strings: where each text ends, and the bytes of all.
pub(crate) struct Strings<'py>(Vec<(PyReadonlyArray1<'py, i64>, PyReadonlyArray1<'py, u8>)>);

impl<'py> Strings<'py> {
    /// Reads a `pyarrow.Array` or `pyarrow.ChunkedArray` of strings of any kind, none of them null.
    pub(crate) fn of(texts: &Bound<'py, PyAny>) -> PyResult<Self> {
        let pyarrow = texts.py().import("pyarrow")?;
        let chunked = texts.is_instance(&pyarrow.getattr("ChunkedArray")?)?;
        if !chunked && !texts.is_instance(&pyarrow.getattr("Array")?)? {
            let name = type_name(texts);
            return Err(PyTypeError::new_err(format!("texts must be a pyarrow.Array or ChunkedArray, not {name}")));
        }
        let (types, kind) = (pyarrow.getattr("types")?, texts.getattr("type")?);
        let is = |kind: &Bound<'py, PyAny>, name| types.call_method1(name, (kind,))?.is_truthy();
        let values = if is(&kind, "is_dictionary")? { kind.getattr("value_type")? } else { kind.clone() };
        if !is(&values, "is_string")? && !is(&values, "is_large_string")? && !is(&values, "is_string_view")? {
            return Err(PyTypeError::new_err(format!("texts are of the Arrow type {kind}, not strings")));
        }
        if texts.getattr("null_count")?.extract::<usize>()? > 0 {
            let first = texts.call_method0("is_null")?.call_method1("index", (true,))?;
            return Err(PyValueError::new_err(format!("text {first} is null")));
        }
        // Offsets become 64 bits; the text is left where it is.
        let texts = texts.call_method1("cast", (pyarrow.call_method0("large_string")?,))?;
        let chunks = if chunked { texts.getattr("chunks")?.extract()? } else { vec![texts] };
        Ok(Self(chunks.iter().map(chunk).collect::<PyResult<_>>()?))
    }

    /// Returns the texts.
    pub(crate) fn texts(&self) -> PyResult<Vec<&str>> {
        let mut texts = Vec::new();
        for (ends, bytes) in &self.0 {
            let bytes = bytes.as_slice()?;
            for pair in ends.as_slice()?.windows(2) {
                let range = usize::try_from(pair[0]).ok().zip(usize::try_from(pair[1]).ok());
                let text = range.and_then(|(from, to)| std::str::from_utf8(bytes.get(from..to)?).ok());
                let bad = || PyValueError::new_err(format!("text {} is not valid Unicode", texts.len()));
                texts.push(text.ok_or_else(bad)?);
            }
        }
        Ok(texts)
    }
}

/// Reads one array of `large_string`.
fn chunk<'py>(chunk: &Bound<'py, PyAny>) -> PyResult<(PyReadonlyArray1<'py, i64>, PyReadonlyArray1<'py, u8>)> {
    let py = chunk.py();
    let (start, length): (usize, usize) = (chunk.getattr("offset")?.extract()?, chunk.len()?);
    let buffers: Vec<Bound<'py, PyAny>> = chunk.call_method0("buffers")?.extract()?;
    let [_, ends, bytes] = buffers.as_slice() else {
        return Err(PyValueError::new_err("texts: an Arrow array of strings has three buffers"));
    };
    // An array of no texts, or of empty ones, may lack the buffers.
    let ends = if length == 0 {
        PyArray1::zeros(py, 1, false)
    } else {
        let place = [("count", length + 1), ("offset", start * size_of::<i64>())].into_py_dict(py)?;
        py.import("numpy")?.call_method("frombuffer", (ends, "int64"), Some(&place))?.cast_into()?
    };
    let bytes = if bytes.is_none() || bytes.len()? == 0 {
        PyArray1::zeros(py, 0, false)
    } else {
        py.import("numpy")?.call_method1("frombuffer", (bytes, "uint8"))?.cast_into()?
    };
    Ok((ends.readonly(), bytes.readonly()))
}
