//! What the values of a template may grow to while it runs; [`super::growth`] puts these checks into its source.

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, context, filters, functions};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Checks a value and returns it.
pub(super) const BOUNDED: &str = "_bounded";
/// Checks what a namespace is given: no other namespace, which could hold itself.
pub(super) const KEPT: &str = "_kept";
/// Counts text of the template that goes into a value.
pub(super) const SPENT: &str = "_spent";
/// A product that is checked before it is made.
pub(super) const TIMES: &str = "_times";

/// How many times over a template may build what it may write: it adds to a text message by message.
const BUILDS: usize = 64;
/// Of values inside of values; what prints or compares them calls itself as often.
const MAX_DEPTH: usize = 32;
/// What a value in a list costs besides its text.
const NODE: usize = 16;
/// How many values are looked at in all, a fraction of a second's worth.
const MAX_NODES: usize = 4 << 20;
/// The widest indentation, and the longest format of a date.
const MAX_WIDTH: usize = 256;

/// What one rendering has used up.
struct Budget {
    limit: usize,
    built: AtomicUsize,
    looked_at: AtomicUsize,
}

fn refuse(message: impl fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_string())
}

impl Budget {
    fn too_large(&self) -> Error {
        refuse(format_args!("it builds values of more than {} bytes", self.limit))
    }

    fn spend(&self, size: usize) -> Result<(), Error> {
        let before = self.built.fetch_add(size, Ordering::Relaxed);
        if size > self.limit || before.saturating_add(size) > self.limit.saturating_mul(BUILDS) {
            return Err(self.too_large());
        }
        Ok(())
    }

    /// Fails where `value`, with all in it, is too large or too deep; returns its size.
    fn check(&self, value: &Value) -> Result<usize, Error> {
        let mut size = 0;
        self.measure(value, 0, &mut size)?;
        Ok(size)
    }

    fn measure(&self, value: &Value, depth: usize, size: &mut usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refuse(format_args!("it nests values more than {MAX_DEPTH} deep")));
        }
        if self.looked_at.fetch_add(1, Ordering::Relaxed) > MAX_NODES {
            return Err(refuse(format_args!("it builds more than {MAX_NODES} values")));
        }
        *size += match value.kind() {
            ValueKind::String => value.as_str().map_or(0, str::len),
            ValueKind::Bytes => value.as_bytes().map_or(0, <[u8]>::len),
            _ if depth > 0 => NODE,
            _ => 0,
        };
        if *size > self.limit {
            return Err(self.too_large());
        }
        let inner = match value.kind() {
            ValueKind::Seq | ValueKind::Map => true,
            // One without a length may be one that can be walked only once.
            ValueKind::Iterable => value.len().is_some(),
            _ => false,
        };
        if !inner {
            return Ok(());
        }
        if depth > 0 && is_namespace(value) {
            return Err(refuse("it puts a namespace into another value"));
        }
        if value.len().is_some_and(|len| len > self.limit) {
            return Err(self.too_large());
        }
        for item in value.try_iter()? {
            self.measure(&item, depth + 1, size)?;
            if value.kind() == ValueKind::Map {
                self.measure(&value.get_item(&item)?, depth + 1, size)?;
            }
        }
        Ok(())
    }

    /// Checks a value that was just made.
    fn made(&self, value: Value) -> Result<Value, Error> {
        let whole = self.check(&value)?;
        let own = match value.kind() {
            ValueKind::String => whole,
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => value.len().unwrap_or(0).saturating_mul(NODE),
            _ => 0,
        };
        self.spend(own)?;
        Ok(value)
    }

    /// Fails where a text of `size` bytes, which is not made yet, would be too large.
    fn fits(&self, size: usize) -> Result<(), Error> {
        if size > self.limit { Err(self.too_large()) } else { Ok(()) }
    }

    fn times(&self, ops: &Environment<'_>, left: Value, right: Value) -> Result<Value, Error> {
        for (value, count) in [(&left, &right), (&right, &left)] {
            if let (ValueKind::String | ValueKind::Seq | ValueKind::Iterable, Some(count)) =
                (value.kind(), count.as_usize())
            {
                self.fits(self.check(value)?.max(value.len().unwrap_or(1)).saturating_mul(count))?;
            }
        }
        let product = ops.compile_expression("left * right")?.eval(context! { left, right })?;
        self.made(product)
    }

    /// Fails where a filter or a method that writes texts into texts would write too much.
    fn before(&self, name: &str, subject: &Value, arguments: &[Value]) -> Result<(), Error> {
        // Keyword arguments are a map, last.
        let named = arguments.iter().filter(|value| value.is_kwargs());
        let named =
            named.flat_map(|map| map.try_iter().into_iter().flatten().filter_map(|key| map.get_item(&key).ok()));
        let all: Vec<Value> = arguments.iter().filter(|value| !value.is_kwargs()).cloned().chain(named).collect();
        for value in all.iter().chain([subject]) {
            self.check(value)?;
        }
        let text = subject.as_str().unwrap_or_default();
        let longest = all.iter().filter_map(|value| value.as_str()).map(str::len).max().unwrap_or(0);
        let items = all.iter().chain([subject]).filter(|value| value.as_str().is_none()).filter_map(Value::len).max();
        match name {
            "replace" => {
                let found = all.first().and_then(|old| Some(text.matches(old.as_str()?).count())).unwrap_or(0);
                self.fits(found.saturating_mul(longest).saturating_add(text.len()))
            }
            "join" => self.fits(items.unwrap_or(0).saturating_mul(longest.max(text.len()))),
            "indent" => {
                let width = all.iter().filter_map(Value::as_usize).max().unwrap_or(4);
                if width > MAX_WIDTH {
                    return Err(refuse(format_args!("it indents by {width}, at most {MAX_WIDTH} are allowed")));
                }
                self.fits(text.lines().count().saturating_mul(width).saturating_add(text.len()))
            }
            "format" => {
                let wide = text.as_bytes().windows(4).any(|digits| digits.iter().all(u8::is_ascii_digit));
                if wide || text.contains('*') {
                    return Err(refuse("it formats to a width of more than 999"));
                }
                let places = text.matches(['%', '{']).count();
                self.fits(places.saturating_mul(longest.max(999)).saturating_add(text.len()))
            }
            _ => Ok(()),
        }
    }
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

/// Gives the checks to an environment: no value may be longer than `limit`, nor all together than [`BUILDS`] of it.
pub(super) fn install(environment: &mut Environment<'_>, limit: usize) {
    let budget = Arc::new(Budget { limit, built: AtomicUsize::new(0), looked_at: AtomicUsize::new(0) });
    let ours = budget.clone();
    environment.add_filter(BOUNDED, move |value: Value| ours.made(value));
    let ours = budget.clone();
    environment.add_filter(KEPT, move |value: Value| {
        if is_namespace(&value) {
            return Err(refuse("it puts a namespace into another value"));
        }
        ours.spend(ours.check(&value)?)?;
        Ok(value)
    });
    let ours = budget.clone();
    environment.add_filter(SPENT, move |nothing: Value, size: usize| ours.spend(size).map(|()| nothing));
    let ours = budget.clone();
    let ops = Environment::empty();
    environment.add_function(TIMES, move |left: Value, right: Value| ours.times(&ops, left, right));

    // No chat template needs these, and each makes much of little.
    for name in ["batch", "chain", "groupby", "pprint", "slice", "zip"] {
        environment.remove_filter(name);
    }
    for (name, original) in [
        ("replace", Value::from_function(filters::replace)),
        ("join", Value::from_function(filters::join)),
        ("indent", Value::from_function(filters::indent)),
        ("format", Value::from_function(filters::format)),
        ("string", Value::from_function(filters::string)),
        ("tojson", Value::from_function(super::python::to_json)),
    ] {
        let ours = budget.clone();
        environment.add_filter(name, move |state: &mut State<'_, '_>, arguments: Rest<ValueOrKwargs>| {
            let arguments = arguments.into_values();
            let [subject, rest @ ..] = &arguments[..] else { return original.call(state, &arguments) };
            ours.before(name, subject, rest)?;
            original.call(state, &arguments)
        });
    }
    environment.remove_global("debug");
    for (name, original) in
        [("dict", Value::from_function(functions::dict)), ("namespace", Value::from_function(functions::namespace))]
    {
        let ours = budget.clone();
        environment.add_function(name, move |state: &mut State<'_, '_>, arguments: Rest<ValueOrKwargs>| {
            ours.made(original.call(state, &arguments.into_values())?)
        });
    }
    environment.set_unknown_method_callback(move |state, value, method, arguments| {
        budget.before(method, value, arguments)?;
        let made = minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)?;
        budget.made(made)
    });
}

/// Fails where a date's format is longer than any that says something.
pub(super) fn date_format(format: &str) -> Result<(), Error> {
    if format.len() > MAX_WIDTH {
        return Err(refuse(format_args!("strftime_now: a format of {} bytes", format.len())));
    }
    Ok(())
}
