//! A passage that was found, and where it comes from.

use arrow_array::{RecordBatch, StringArray, StructArray, cast::AsArray};
use arrow_schema::{Fields, Schema};
use serde::Serialize;
use serde_json::{Map, Value};
use std::sync::Arc;
use utoipa::ToSchema;

/// Where a passage comes from.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Source {
    /// The Delta table.
    pub table: String,
    /// Its version that the library mirrors.
    pub version: i64,
    /// The values of the id columns.
    #[schema(value_type = Object)]
    pub row: Map<String, Value>,
}

/// A passage that was found.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Hit {
    /// The row's id, `#`, and which passage of the row it is, from 0 on.
    pub id: String,
    /// The passage.
    pub text: String,
    /// What the hits are ordered by: the cosine similarity, the sum of the best products of tokens in a search by token vectors,
    /// from 0 to 1 how well meaning and words fit in a hybrid search, or what the reranker says.
    pub score: f64,
    /// The cosine similarity of question and passage, in any search.
    pub similarity: f32,
    /// The kept columns of the row.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    /// Where it comes from.
    pub source: Source,
    /// Which passages of the row the text is of, first to last: one, but where a search expands hits.
    pub passages: Vec<i64>,
}

impl Hit {
    /// The id of its row.
    pub(super) fn row(&self) -> &str {
        row_of(&self.id)
    }
}

/// The id of a passage's row, by its own.
pub(super) fn row_of(id: &str) -> &str {
    id.rsplit_once('#').map_or(id, |(row, _)| row)
}

/// Returns the passages of a batch, less their scores.
pub(super) fn hits(batch: &RecordBatch, query: &[f32], source: &Value) -> Result<Vec<Hit>, String> {
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("the library has no column {name:?}"));
    let texts = |name: &str| {
        let strings = column(name)?.as_string_opt::<i32>().cloned();
        strings.ok_or_else(|| format!("the library's column {name:?} is no text"))
    };
    let (ids, passages): (StringArray, StringArray) = (texts("id")?, texts("text")?);
    let keys = objects(column("key")?.as_struct_opt())?;
    let metadata = match batch.column_by_name("metadata") {
        Some(column) => objects(column.as_struct_opt())?,
        None => vec![Map::new(); batch.num_rows()],
    };
    let vectors = column("vector")?.as_fixed_size_list_opt().ok_or("the library's vectors are no lists")?;
    let table = source.get("table").and_then(Value::as_str).unwrap_or_default();
    let version = source.get("version").and_then(Value::as_i64).unwrap_or_default();
    let rows = keys.into_iter().zip(metadata).enumerate();
    rows.map(|(i, (row, metadata))| {
        let vector = vectors.value(i);
        let vector = vector.as_primitive_opt::<arrow_array::types::Float32Type>().ok_or("a vector is not of f32")?;
        // The same arithmetic for every kind of search; LanceDB's distance only orders.
        let similarity = vector.values().iter().zip(query).map(|(a, b)| a * b).sum();
        let source = Source { table: table.to_owned(), version, row };
        let (id, text) = (ids.value(i).to_owned(), passages.value(i).to_owned());
        let ordinal = id.rsplit_once('#').and_then(|(_, ordinal)| ordinal.parse().ok());
        let passages =
            vec![ordinal.ok_or_else(|| format!("the library has a passage {id:?}, which is none of a row"))?];
        Ok(Hit { id, text, score: f64::from(similarity), similarity, metadata, source, passages })
    })
    .collect()
}

/// The rows of a struct as JSON; columns that hold JSON already, as what that says.
fn objects(column: Option<&StructArray>) -> Result<Vec<Map<String, Value>>, String> {
    let column = column.ok_or("the library's key or metadata is no struct")?;
    let fields: &Fields = column.fields();
    let schema = Arc::new(Schema::new(fields.clone()));
    let batch = RecordBatch::try_new(schema, column.columns().to_vec()).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let builder = arrow_json::WriterBuilder::new().with_explicit_nulls(true);
    let mut writer = builder.build::<_, arrow_json::writer::JsonArray>(&mut bytes);
    writer.write(&batch).and_then(|()| writer.finish()).map_err(|e| e.to_string())?;
    drop(writer);
    let mut rows: Vec<Map<String, Value>> = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    let nested = |field: &&Arc<arrow_schema::Field>| field.metadata().get("adventures.json").is_some_and(|v| v == "1");
    for field in fields.iter().filter(nested) {
        for row in &mut rows {
            if let Some(value) = row.get_mut(field.name())
                && let Value::String(text) = value
            {
                *value = serde_json::from_str(text).map_err(|e| e.to_string())?;
            }
        }
    }
    Ok(rows)
}
