//! Passages with those before and after them in their row, joined to one text, as the Python package joins them.

use super::Snapshot;
use super::hit::Hit;
use super::search::{quoted, read, rows};
use adventures::Error;
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use std::collections::{BTreeMap, HashMap};

/// Passages of a row, from one to another, and the place of the best hit among them.
struct Stretch {
    best: usize,
    row: String,
    first: i64,
    last: i64,
}

impl Stretch {
    fn touches(&self, other: &Self) -> bool {
        self.row == other.row && self.first <= other.last + 1 && other.first <= self.last + 1
    }
}

/// A passage's text, and how many of its characters it shares with the one before it, where that is known.
type Passage = (Option<i32>, String);

/// Row → ordinal → passage.
type Passages = HashMap<String, BTreeMap<i64, Passage>>;

/// Returns hits with up to `n` passages of their row before them and after, in the order of the hits.
///
/// Hits of a row whose stretches meet become one, with the id, the scores and the place of the best of them.
pub(super) async fn expanded(snapshot: &Snapshot, hits: Vec<Hit>, n: usize) -> Result<Vec<Hit>, Error> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for (best, hit) in hits.iter().enumerate() {
        let (row, at) = (hit.row(), hit.passages.first().copied().unwrap_or_default());
        let mut wide = Stretch { best, row: row.to_owned(), first: (at - n as i64).max(0), last: at + n as i64 };
        // It may close the gap between stretches that did not meet before.
        let own = |wide: &Stretch, other: &Stretch| other.touches(wide);
        let (met, rest): (Vec<_>, Vec<_>) = stretches.into_iter().partition(|other| own(&wide, other));
        for other in met {
            wide.best = wide.best.min(other.best);
            (wide.first, wide.last) = (wide.first.min(other.first), wide.last.max(other.last));
        }
        stretches = rest;
        stretches.push(wide);
    }
    stretches.sort_by_key(|one| one.best);
    let passages = passages(snapshot, &stretches).await?;
    let mut hits: Vec<Option<Hit>> = hits.into_iter().map(Some).collect();
    let joined = stretches.into_iter().filter_map(|one| {
        let hit = hits[one.best].take()?;
        let covered = passages.get(&one.row).map(|row| row.range(one.first..=one.last).collect::<Vec<_>>());
        Some(joined(hit, &covered.unwrap_or_default()))
    });
    Ok(joined.collect())
}

fn joined(hit: Hit, covered: &[(&i64, &Passage)]) -> Hit {
    let Some(((_, (_, first)), others)) = covered.split_first() else { return hit };
    let mut text = first.clone();
    for (_, (overlap, after)) in others {
        push_rest(&mut text, *overlap, after);
    }
    Hit { text, passages: covered.iter().map(|(ordinal, _)| **ordinal).collect(), ..hit }
}

/// Writes a passage so that it follows the one before: without what both have, or on a new line.
fn push_rest(text: &mut String, overlap: Option<i32>, after: &str) {
    if let Some(shared) = overlap.and_then(|overlap| usize::try_from(overlap).ok()) {
        text.extend(after.chars().skip(shared));
    } else {
        // What was between two passages was white space: that is all a library knows of it.
        text.push('\n');
        text.push_str(after);
    }
}

async fn passages(snapshot: &Snapshot, stretches: &[Stretch]) -> Result<Passages, Error> {
    let mut passages = Passages::new();
    if stretches.is_empty() {
        return Ok(passages);
    }
    let wanted = stretches
        .iter()
        .map(|one| format!("(row_id = {} AND ordinal BETWEEN {} AND {})", quoted(&one.row), one.first, one.last));
    let wanted = wanted.collect::<Vec<_>>().join(" OR ");
    // Libraries that were made before there was this column have none.
    let overlap = snapshot.schema.field_with_name("overlap").is_ok().then_some("overlap");
    let columns: Vec<&str> = ["row_id", "ordinal", "text"].into_iter().chain(overlap).collect();
    for batch in rows(snapshot, &columns, &wanted).await? {
        let column =
            |name: &str| batch.column_by_name(name).ok_or_else(|| format!("the library has no column {name:?}"));
        let strings = |name: &str| {
            let strings = column(name)?.as_string_opt::<i32>().cloned();
            strings.ok_or_else(|| format!("the library's column {name:?} is no text"))
        };
        let numbers = |name: &str| {
            let numbers = column(name)?.as_primitive_opt::<Int32Type>().cloned();
            numbers.ok_or_else(|| format!("the library's column {name:?} is not of i32"))
        };
        let (of, texts) = (strings("row_id").map_err(|e| read(&e))?, strings("text").map_err(|e| read(&e))?);
        let ordinals = numbers("ordinal").map_err(|e| read(&e))?;
        let overlaps = overlap.map(numbers).transpose().map_err(|e| read(&e))?;
        for at in 0..batch.num_rows() {
            let overlap = overlaps.as_ref().filter(|all| all.is_valid(at)).map(|all| all.value(at));
            let row = passages.entry(of.value(at).to_owned()).or_default();
            row.insert(ordinals.value(at).into(), (overlap, texts.value(at).to_owned()));
        }
    }
    Ok(passages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passages_share_is_written_once() {
        for (before, overlap, after, expected) in [
            ("the red rope", Some(8), "red rope is long", "the red rope is long"),
            ("no no no", Some(2), "no yes", "no no no yes"),
            ("龍は眠る", Some(1), "る夜に", "龍は眠る夜に"),
            ("龍は眠る", Some(0), "夜に", "龍は眠る夜に"),
            ("One.", Some(-2), "Two.", "One.\nTwo."),
            ("a rope", None, "a rope", "a rope\na rope"),
            ("a rope", Some(9), "rope", "a rope"),
        ] {
            let mut text = before.to_owned();
            push_rest(&mut text, overlap, after);
            assert_eq!(text, expected);
        }
    }
}
