//! Rust's errors as Python's.

use adventures::Error;
use pyo3::exceptions::{
    PyException, PyFileNotFoundError, PyNotImplementedError, PyOSError, PyUserWarning, PyValueError,
};
use pyo3::{PyErr, create_exception};

create_exception!(
    adventures,
    AdventuresError,
    PyException,
    "What fails inside adventures and is not the caller's doing."
);
create_exception!(adventures, BusyError, AdventuresError, "No room now; the same call may go through later.");
create_exception!(adventures, TruncationWarning, PyUserWarning, "Texts were longer than the model reads and were cut.");

/// Lets `?` turn an [`Error`] into a Python exception.
pub(crate) struct PyError(pub(crate) Error);

impl From<Error> for PyError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<PyError> for PyErr {
    fn from(PyError(error): PyError) -> Self {
        let message = error.to_string();
        match error {
            Error::Invalid(_) => PyValueError::new_err(message),
            Error::NotFound(_) => PyFileNotFoundError::new_err(message),
            Error::Unsupported(_) => PyNotImplementedError::new_err(message),
            Error::Busy(_) => BusyError::new_err(message),
            Error::Io { .. } => PyOSError::new_err(message),
            _ => AdventuresError::new_err(message),
        }
    }
}
