//! Conditions on a library's columns, built from values: what a value holds is never read as SQL.

use arrow_schema::{DataType, Field, Schema};
use jiff::civil::{Date, DateTime};
use jiff::{Timestamp, Zoned};
use serde_json::{Map, Number, Value};
use std::fmt::Write;

/// What is wrong with a filter.
type Result<T> = std::result::Result<T, String>;

/// The most that Arrow's widest common decimal holds.
const DECIMAL_DIGITS: usize = 38;
const OPERATORS: [&str; 8] = ["eq", "ne", "gt", "gte", "lt", "lte", "in", "contains"];

/// Returns the SQL of a filter, all of whose entries must hold; `None` of an empty one.
///
/// An entry is `column: value` (equal), `column: [values]` (any of them), `column: null`, or
/// `column: {operator: value, …}` with the operators eq, ne (of a list: none of them), gt, gte, lt, lte, in, and contains (of a list column).
/// Columns are those of the source table that the library keeps. A date or time is a text in ISO 8601.
pub(super) fn condition(filter: &Map<String, Value>, schema: &Schema) -> Result<Option<String>> {
    let columns = columns(schema);
    let mut parts = Vec::with_capacity(filter.len());
    for (name, wanted) in filter {
        // Where a column is both, key and metadata hold the same.
        let Some((path, field)) = columns.iter().rev().find(|(_, field)| field.name() == name) else {
            let known: Vec<String> = columns.iter().map(|(_, field)| format!("{:?}", field.name())).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(format!("where names the column {name:?}, which the library does not keep; it keeps {known}"));
        };
        parts.push(format!("({})", entry(path, field, wanted)?));
    }
    Ok((!parts.is_empty()).then(|| parts.join(" AND ")))
}

/// The path and field of each column that a filter may name, metadata first.
pub(super) fn columns(schema: &Schema) -> Vec<(String, &Field)> {
    let mut found = Vec::new();
    for part in ["metadata", "key"] {
        if let Ok(field) = schema.field_with_name(part)
            && let DataType::Struct(fields) = field.data_type()
        {
            let path = |field: &Field| format!("{part}.`{}`", field.name().replace('`', "``"));
            found.extend(fields.iter().map(|field| (path(field), field.as_ref())));
        }
    }
    found
}

fn entry(path: &str, column: &Field, wanted: &Value) -> Result<String> {
    match wanted {
        Value::Object(operations) if operations.is_empty() => {
            Err(format!("where has no operator for the column {:?}", column.name()))
        }
        Value::Object(operations) => {
            let parts: Result<Vec<_>> =
                operations.iter().map(|(name, value)| operation(path, column, name, value)).collect();
            Ok(parts?.join(" AND "))
        }
        Value::Array(values) => any_of(path, column, values),
        value => operation(path, column, "eq", value),
    }
}

fn operation(path: &str, column: &Field, operator: &str, value: &Value) -> Result<String> {
    let name = column.name();
    let symbol = match operator {
        "eq" => "=",
        "ne" => "<>",
        "gt" => ">",
        "gte" => ">=",
        "lt" => "<",
        "lte" => "<=",
        "in" => {
            let Value::Array(values) = value else {
                return Err(format!("where needs a list after \"in\" for the column {name:?}, not {value}"));
            };
            return any_of(path, column, values);
        }
        "contains" => {
            let (DataType::List(item) | DataType::LargeList(item)) = column.data_type() else {
                let kind = column.data_type();
                return Err(format!("where uses \"contains\" on the column {name:?} of type {kind}, not a list"));
            };
            return Ok(format!("array_has({path}, {})", literal(name, item.data_type(), value)?));
        }
        other => {
            return Err(format!("where has the operator {other:?} for {name:?}; there are {}", OPERATORS.join(", ")));
        }
    };
    if let ("ne", Value::Array(values)) = (operator, value) {
        let parts = values.iter().map(|value| compared(path, column, operator, symbol, value));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        return Ok(if parts.is_empty() { "true".into() } else { parts.join(" AND ") });
    }
    compared(path, column, operator, symbol, value)
}

fn compared(path: &str, column: &Field, operator: &str, symbol: &str, value: &Value) -> Result<String> {
    let name = column.name();
    if value.is_null() {
        return match operator {
            "eq" => Ok(format!("{path} IS NULL")),
            "ne" => Ok(format!("{path} IS NOT NULL")),
            _ => Err(format!("where compares the column {name:?} with null; only eq and ne can")),
        };
    }
    let comparison = format!("{path} {symbol} {}", literal(name, column.data_type(), value)?);
    // In SQL a null is not unequal to anything either; people mean "all but these".
    Ok(if operator == "ne" { format!("({comparison} OR {path} IS NULL)") } else { comparison })
}

fn any_of(path: &str, column: &Field, values: &[Value]) -> Result<String> {
    let given = values.iter().filter(|value| !value.is_null());
    let literals: Vec<String> =
        given.map(|value| literal(column.name(), column.data_type(), value)).collect::<Result<_>>()?;
    let mut parts = Vec::new();
    if !literals.is_empty() {
        parts.push(format!("{path} IN ({})", literals.join(", ")));
    }
    if literals.len() < values.len() {
        parts.push(format!("{path} IS NULL"));
    }
    // Any of nothing is nothing.
    Ok(if parts.is_empty() { "false".into() } else { format!("({})", parts.join(" OR ")) })
}

fn literal(name: &str, kind: &DataType, value: &Value) -> Result<String> {
    let found = match (kind, value) {
        (DataType::Boolean, Value::Bool(value)) => Some(value.to_string()),
        (DataType::Utf8 | DataType::LargeUtf8, Value::String(text)) => {
            if text.contains('\0') {
                return Err(format!("where has a null character in the value for {name:?}: {text:?}"));
            }
            Some(format!("'{}'", text.replace('\'', "''")))
        }
        (_, Value::Number(number)) => self::number(name, kind, number)?,
        (DataType::Date32 | DataType::Date64, Value::String(text)) => {
            text.parse::<Date>().ok().map(|date| format!("date '{date}'"))
        }
        (DataType::Timestamp(_, zone), Value::String(text)) => timestamp(name, kind, zone.is_some(), text)?,
        _ => None,
    };
    found.ok_or_else(|| format!("where compares the column {name:?} of type {kind} with {value}, {}", a_kind(value)))
}

fn a_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "a null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn number(name: &str, kind: &DataType, number: &Number) -> Result<Option<String>> {
    let cannot = |what: &str| Err(format!("where compares the column {name:?} of type {kind} with {number}, {what}"));
    let bounds = match kind {
        DataType::Int8 => Some((i128::from(i8::MIN), i128::from(i8::MAX))),
        DataType::Int16 => Some((i128::from(i16::MIN), i128::from(i16::MAX))),
        DataType::Int32 => Some((i128::from(i32::MIN), i128::from(i32::MAX))),
        DataType::Int64 => Some((i128::from(i64::MIN), i128::from(i64::MAX))),
        DataType::UInt8 => Some((0, i128::from(u8::MAX))),
        DataType::UInt16 => Some((0, i128::from(u16::MAX))),
        DataType::UInt32 => Some((0, i128::from(u32::MAX))),
        DataType::UInt64 => Some((0, i128::from(u64::MAX))),
        _ => None,
    };
    if let Some((low, high)) = bounds {
        let whole = number.as_i128().or_else(|| number.as_f64().filter(|x| x.fract() == 0.0).map(|x| x as i128));
        return match whole {
            None => cannot("not a whole number"),
            Some(whole) if (low..=high).contains(&whole) => Ok(Some(whole.to_string())),
            Some(_) => cannot("which it cannot hold"),
        };
    }
    match kind {
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let Some(value) = number.as_f64().filter(|value| value.is_finite()) else {
                return cannot("which it cannot hold");
            };
            let sql = if matches!(kind, DataType::Float64) { "DOUBLE" } else { "FLOAT" };
            Ok(Some(format!("CAST('{value:?}' AS {sql})")))
        }
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            let text = plain(&number.to_string());
            let digits = text.trim_start_matches('-');
            let (whole, fraction) = digits.split_once('.').map_or((digits.len(), 0), |(w, f)| (w.len(), f.len()));
            let scale = (*scale).max(0) as usize;
            // The two are compared in a type that holds both.
            if whole.max(*precision as usize - scale) + fraction.max(scale) > DECIMAL_DIGITS {
                return cannot("which has too many digits");
            }
            // A type of its own: in the column's, 1.499 would become 1.50, and equal to that.
            Ok(Some(format!("CAST('{text}' AS DECIMAL({}, {fraction}))", whole + fraction)))
        }
        _ => Ok(None),
    }
}

/// A number as JSON writes it, without an exponent.
fn plain(text: &str) -> String {
    let Some((digits, exponent)) = text.split_once(['e', 'E']) else { return text.to_owned() };
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    // An exponent of a double has three digits.
    let point = whole.len() as i64 + exponent.parse::<i64>().unwrap_or(0);
    let digits = format!("{whole}{fraction}");
    let mut out = String::from(sign);
    match usize::try_from(point) {
        Ok(point) if point >= digits.len() => {
            let _ = write!(out, "{digits:0<point$}");
        }
        Ok(point) if point > 0 => {
            let _ = write!(out, "{}.{}", &digits[..point], &digits[point..]);
        }
        _ => {
            let _ = write!(out, "0.{}{digits}", "0".repeat(point.unsigned_abs() as usize));
        }
    }
    out
}

/// What a text in ISO 8601 says; `None` where it is none.
fn timestamp(name: &str, kind: &DataType, zoned: bool, text: &str) -> Result<Option<String>> {
    let moment = text.parse::<Timestamp>().ok().or_else(|| text.parse::<Zoned>().ok().map(|zoned| zoned.timestamp()));
    let civil = match (moment, text.parse::<DateTime>().or_else(|_| text.parse::<Date>().map(DateTime::from)).ok()) {
        (Some(moment), _) if zoned => moment.to_zoned(jiff::tz::TimeZone::UTC).datetime(),
        (None, Some(civil)) if !zoned => civil,
        (None, None) => return Ok(None),
        _ => {
            return Err(format!(
                "where compares the column {name:?} of type {kind} with {text:?}: only one has a time zone"
            ));
        }
    };
    Ok(Some(format!("timestamp '{} {}'", civil.date(), civil.time())))
}
