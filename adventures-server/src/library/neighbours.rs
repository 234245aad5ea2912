//! Passages with those before and after them in their row, joined to one text, as the Python package joins them.

use super::Snapshot;
use super::hit::Hit;
use super::search::{quoted, read, rows};
use adventures::Error;
use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use icu_properties::CodePointMapData;
use icu_properties::props::{EastAsianWidth, GeneralCategory, GeneralCategoryGroup};
use std::collections::{BTreeMap, HashMap};

/// So many equal letters in a row are no chance, wherever in a word they begin.
const LONG: usize = 16;

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

/// Row → ordinal → text.
type Texts = HashMap<String, BTreeMap<i64, Vec<char>>>;

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
    let texts = texts(snapshot, &stretches).await?;
    let overlap = snapshot.source.get("overlap").and_then(serde_json::Value::as_u64).is_some_and(|n| n > 0);
    let mut hits: Vec<Option<Hit>> = hits.into_iter().map(Some).collect();
    let joined = stretches.into_iter().filter_map(|one| {
        let hit = hits[one.best].take()?;
        let covered = texts.get(&one.row).map(|row| row.range(one.first..=one.last).collect::<Vec<_>>());
        Some(joined(hit, &covered.unwrap_or_default(), overlap))
    });
    Ok(joined.collect())
}

fn joined(hit: Hit, covered: &[(&i64, &Vec<char>)], overlap: bool) -> Hit {
    let Some((_, first)) = covered.first() else { return hit };
    let mut text: String = first.iter().collect();
    // What is shared with a passage cannot reach back beyond it, however often the text repeats itself.
    for pair in covered.windows(2) {
        push_rest(&mut text, pair[0].1, pair[1].1, overlap);
    }
    Hit { text, passages: covered.iter().map(|(ordinal, _)| **ordinal).collect(), ..hit }
}

async fn texts(snapshot: &Snapshot, stretches: &[Stretch]) -> Result<Texts, Error> {
    let mut texts = Texts::new();
    if stretches.is_empty() {
        return Ok(texts);
    }
    let wanted = stretches
        .iter()
        .map(|one| format!("(row_id = {} AND ordinal BETWEEN {} AND {})", quoted(&one.row), one.first, one.last));
    let wanted = wanted.collect::<Vec<_>>().join(" OR ");
    for batch in rows(snapshot, &["row_id", "ordinal", "text"], &wanted).await? {
        let column =
            |name: &str| batch.column_by_name(name).ok_or_else(|| format!("the library has no column {name:?}"));
        let strings = |name: &str| {
            let strings = column(name)?.as_string_opt::<i32>().cloned();
            strings.ok_or_else(|| format!("the library's column {name:?} is no text"))
        };
        let (rows, passages) = (strings("row_id").map_err(|e| read(&e))?, strings("text").map_err(|e| read(&e))?);
        let ordinals = column("ordinal").map_err(|e| read(&e))?.as_primitive_opt::<Int32Type>();
        let ordinals = ordinals.ok_or_else(|| read(&"the library's ordinals are not of i32"))?;
        for at in 0..batch.num_rows() {
            let row = texts.entry(rows.value(at).to_owned()).or_default();
            row.insert(ordinals.value(at).into(), passages.value(at).chars().collect());
        }
    }
    Ok(texts)
}

/// Writes a passage so that it follows the one before: without what both have, or on a new line.
///
/// Passages are pieces of a text from which the white space around them is gone, and neighbours share whole words.
fn push_rest(text: &mut String, before: &[char], after: &[char], overlap: bool) {
    let (Some(last), Some(first)) = (before.last(), after.first()) else {
        text.extend(after);
        return;
    };
    if overlap {
        let shortest = before.len().saturating_sub(after.len());
        for at in (shortest..before.len()).filter(|at| before[*at] == *first) {
            let shared = before.len() - at;
            if after.starts_with(&before[at..]) && (shared >= LONG || is_whole(before, after, at)) {
                text.extend(&after[shared..]);
                return;
            }
        }
    }
    if !(is_wide(*last) && is_wide(*first)) {
        text.push('\n');
    }
    text.extend(after);
}

/// Whether what two passages share, from `at` in the first on, begins and ends between words.
fn is_whole(before: &[char], after: &[char], at: usize) -> bool {
    let shared = before.len() - at;
    let begins = at == 0 || !within(before[at - 1], before[at]);
    begins && (shared == after.len() || !within(after[shared - 1], after[shared]))
}

/// Whether two letters beside each other are of one word.
fn within(left: char, right: char) -> bool {
    is_alphanumeric(left) && is_alphanumeric(right) && !(is_wide(left) || is_wide(right))
}

/// As Python's `str.isalnum`: `char::is_alphanumeric` counts the vowel signs of Indic scripts, too.
fn is_alphanumeric(letter: char) -> bool {
    let category = CodePointMapData::<GeneralCategory>::new().get(letter);
    GeneralCategoryGroup::Letter.contains(category) || GeneralCategoryGroup::Number.contains(category)
}

/// Chinese and Japanese write no spaces between words.
fn is_wide(letter: char) -> bool {
    let width = CodePointMapData::<EastAsianWidth>::new().get(letter);
    width == EastAsianWidth::Wide || width == EastAsianWidth::Fullwidth
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(before: &str, after: &str, overlap: bool) -> String {
        let letters = |text: &str| text.chars().collect::<Vec<_>>();
        let mut text = before.to_owned();
        push_rest(&mut text, &letters(before), &letters(after), overlap);
        text
    }

    #[test]
    fn what_passages_share_is_written_once() {
        for (before, after, overlap, expected) in [
            ("the red rope", "red rope is long", true, "the red rope is long"),
            ("the red rope", "red rope is long", false, "the red rope\nred rope is long"),
            // It shares letters, and no word.
            ("the lamp", "map of it", true, "the lamp\nmap of it"),
            ("a rope", "a rope", true, "a rope"),
            ("no no no", "no no yes", true, "no no no yes"),
            ("龍は眠る", "る夜に", true, "龍は眠る夜に"),
            ("龍は眠る", "夜に", false, "龍は眠る夜に"),
            ("abcdefghijklmnopqrs", "cdefghijklmnopqrst", true, "abcdefghijklmnopqrst"),
            ("का", "ा है", true, "का है"),
        ] {
            assert_eq!(rest(before, after, overlap), expected, "{before:?} {after:?}");
        }
    }
}
