//! How a model is best asked, as its catalogue entry says.

use crate::error::{Error, Result, cut};
use serde_json::{Map, Value};

/// How many earlier turns are repeated where a profile does not say.
const HISTORY: usize = 4;
const USER: &str = "{passages}\n\nQuestion: {question}";

/// A worked example: passages, a question, and the answer that a model should give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// What was found.
    pub passages: Vec<String>,
    /// What was asked.
    pub question: String,
    /// What the answer should be.
    pub answer: String,
}

/// How to prompt a model. A large one gets rules and numbered passages; a small one what was found to work: few passages, worked
/// examples, an answer that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// What errors call the model.
    pub model: String,
    /// How many passages go into a prompt at most; `None` for as many as were found and fit.
    pub passages: Option<usize>,
    /// Turns shown before the conversation.
    pub examples: Vec<Example>,
    /// What each answer begins with.
    pub prefix: String,
    /// The system text; `None` for persona and rules.
    pub instruction: Option<String>,
    /// How many earlier turns are repeated.
    pub history: usize,
    /// How a question is put, with `{passages}` and `{question}`.
    pub user: String,
}

impl Profile {
    /// Returns the profile of a model of which nothing is known.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            passages: None,
            examples: Vec::new(),
            prefix: String::new(),
            instruction: None,
            history: HISTORY,
            user: USER.into(),
        }
    }

    /// Reads the `profile` table of a catalogue entry. Fields that are not about prompts are somebody else's.
    ///
    /// Fails with the field's name where a field is not of the kind that it should be.
    pub fn read(model: impl Into<String>, table: &Value) -> Result<Self> {
        let plain = Self::new(model);
        let read = |plain: Self| -> Result<Self, String> {
            let table = Table::new(table, String::new())?;
            let examples =
                table.field("examples", "a list of tables", Value::as_array)?.into_iter().flatten().enumerate();
            Ok(Self {
                passages: table.field("passages", "a whole number from 1 on", |n| count(n).filter(|n| *n > 0))?,
                examples: examples.map(|(i, example)| Example::read(example, i)).collect::<Result<_, _>>()?,
                prefix: table.text("prefix")?.unwrap_or(plain.prefix),
                instruction: table.text("instruction")?,
                history: table.field("history", "a whole number", count)?.unwrap_or(plain.history),
                user: table.text("user")?.unwrap_or(plain.user),
                model: plain.model,
            })
        };
        let model = plain.model.clone();
        read(plain).map_err(|e| Error::Invalid(format!("the chat profile of {model} is not understood: {e}")))
    }
}

impl Example {
    fn read(value: &Value, i: usize) -> Result<Self, String> {
        let table = Table::new(value, format!("examples[{i}]"))?;
        let texts = |value: &Value| -> Option<Vec<String>> {
            value.as_array()?.iter().map(|text| Some(text.as_str()?.to_owned())).collect()
        };
        Ok(Self {
            passages: table.needed("passages", table.field("passages", "a list of texts", texts)?)?,
            question: table.needed("question", table.text("question")?)?,
            answer: table.needed("answer", table.text("answer")?)?,
        })
    }
}

fn count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|count| usize::try_from(count).ok())
}

/// A table of a profile, and where in it: errors name a field by its whole path.
struct Table<'a> {
    fields: &'a Map<String, Value>,
    place: String,
}

impl<'a> Table<'a> {
    fn new(value: &'a Value, place: String) -> Result<Self, String> {
        match value.as_object() {
            Some(fields) => Ok(Self { fields, place: if place.is_empty() { place } else { place + "." } }),
            None => Err(format!(
                "{place}{}{}: expected a table",
                if place.is_empty() { "" } else { "=" },
                cut(value.to_string())
            )),
        }
    }

    /// Returns what `read` makes of a field, `None` where there is none.
    fn field<T>(&self, name: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, String> {
        let Some(value) = self.fields.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
        let refuse = || format!("{}{name}={}: expected {expected}", self.place, cut(value.to_string()));
        read(value).map(Some).ok_or_else(refuse)
    }

    fn text(&self, name: &str) -> Result<Option<String>, String> {
        self.field(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    fn needed<T>(&self, name: &str, value: Option<T>) -> Result<T, String> {
        value.ok_or_else(|| format!("{}{name} is missing", self.place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_profile_is_read() {
        let table = json!({
            "passages": 1,
            "history": 0,
            "prefix": "[1]",
            "instruction": null,
            "min_similarity": 0.3,
            "examples": [{"passages": ["p"], "question": "q", "answer": "a", "note": 1}],
        });
        let example = Example { passages: vec!["p".into()], question: "q".into(), answer: "a".into() };
        let want = Profile {
            passages: Some(1),
            history: 0,
            prefix: "[1]".into(),
            examples: vec![example],
            ..Profile::new("smol")
        };
        assert_eq!(Profile::read("smol", &table).unwrap(), want);
        assert_eq!(Profile::read("smol", &json!({})).unwrap(), Profile::new("smol"));
    }

    #[test]
    fn a_field_of_another_kind_is_named() {
        for (table, problem) in [
            (json!([]), "[]: expected a table"),
            (json!({"passages": 0}), "passages=0: expected a whole number from 1 on"),
            (json!({"passages": true}), "passages=true: expected a whole number from 1 on"),
            (json!({"history": -1}), "history=-1: expected a whole number"),
            (json!({"prefix": 1}), "prefix=1: expected a text"),
            (json!({"user": ["a"]}), "user=[\"a\"]: expected a text"),
            (json!({"instruction": {}}), "instruction={}: expected a text"),
            (json!({"examples": 3}), "examples=3: expected a list of tables"),
            (json!({"examples": [1]}), "examples[0]=1: expected a table"),
            (json!({"examples": [{"question": "q"}]}), "examples[0].passages is missing"),
            (json!({"examples": [{"passages": "p"}]}), "examples[0].passages=\"p\": expected a list of texts"),
            (json!({"examples": [{"passages": [1]}]}), "examples[0].passages=[1]: expected a list of texts"),
            (json!({"examples": [{"passages": [], "question": "q"}]}), "examples[0].answer is missing"),
        ] {
            let error = Profile::read("smol", &table).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)));
            assert_eq!(error.to_string(), format!("the chat profile of smol is not understood: {problem}"));
        }
    }
}
