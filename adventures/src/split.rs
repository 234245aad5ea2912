//! Cuts long texts into pieces that fit a window of tokens, at the best boundary there is.

use crate::error::{Error, Result, invalid};
use text_splitter::{ChunkConfig, ChunkSizer, TextSplitter};

/// How many bytes the splitter is shown at a time, at first. For each piece it looks for boundaries in all that is left: a megabyte
/// without a space would take minutes.
const WINDOW: usize = 1 << 14;

/// Measures a text by a function.
struct Sizer<F>(F);

impl<F: Fn(&str) -> usize> ChunkSizer for Sizer<F> {
    fn size(&self, chunk: &str) -> usize {
        (self.0)(chunk)
    }
}

/// Returns pieces of `text` of at most `capacity` as `size` measures them, neighbours sharing up to `overlap`.
///
/// A text that fits is returned whole. Longer ones are cut between paragraphs, else sentences, words or characters, by
/// the `text-splitter` crate.
pub(crate) fn split(text: &str, capacity: usize, overlap: usize, size: impl Fn(&str) -> usize) -> Result<Vec<&str>> {
    if capacity == 0 || overlap >= capacity {
        return invalid!("overlap={overlap} must be smaller than the {capacity} tokens that a piece may have");
    }
    if size(text) <= capacity {
        return Ok(vec![text]);
    }
    let config = ChunkConfig::new(capacity)
        .with_sizer(Sizer(size))
        .with_overlap(overlap)
        .map_err(|e| Error::Invalid(format!("overlap={overlap}: {e}")))?;
    let splitter = TextSplitter::new(config);
    let mut pieces = Vec::new();
    let (mut rest, mut window) = (text, WINDOW);
    loop {
        let seen = head(rest, window);
        let found: Vec<(usize, &str)> = splitter.chunk_indices(seen).collect();
        match found.split_last() {
            // The last piece ends where the window does and not where the text would have it: it is cut again.
            Some((&(start, _), whole)) if seen.len() < rest.len() && !whole.is_empty() => {
                pieces.extend(whole.iter().map(|(_, piece)| piece));
                rest = &rest[start..];
            }
            _ if seen.len() < rest.len() => window *= 2,
            _ => {
                pieces.extend(found.iter().map(|(_, piece)| piece));
                return Ok(pieces);
            }
        }
    }
}

/// Returns where the pieces of a text are in it: the first character of each, and the one after its last.
///
/// The pieces must be parts of `text` itself, in the order of their beginnings.
pub(crate) fn spans(text: &str, pieces: &[&str]) -> Vec<(usize, usize)> {
    let (mut bytes, mut characters) = (0, 0);
    let one = |piece: &&str| {
        let start = piece.as_ptr() as usize - text.as_ptr() as usize;
        characters += text[bytes..start].chars().count();
        bytes = start;
        (characters, characters + piece.chars().count())
    };
    pieces.iter().map(one).collect()
}

/// Returns the first `bytes` bytes of `text`, or up to three less where a character would be cut.
pub(crate) fn head(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::{spans, split};

    fn words(text: &str) -> usize {
        text.split_whitespace().count()
    }

    #[test]
    fn pieces_fit_and_cover_the_text() {
        let text = (0..500).map(|i| if i % 9 == 8 { "word.\n" } else { "word " }).collect::<String>();
        for (capacity, overlap) in [(1, 0), (7, 0), (50, 10), (50, 49), (499, 3)] {
            let pieces = split(&text, capacity, overlap, words).expect("valid arguments");
            assert!(pieces.iter().all(|piece| words(piece) <= capacity), "{capacity} {overlap}");
            let mut covered = 0;
            for piece in &pieces {
                let start = piece.as_ptr() as usize - text.as_ptr() as usize;
                assert!(text[covered.min(start)..start].trim().is_empty(), "a gap before byte {start}");
                covered = covered.max(start + piece.len());
            }
            assert!(text[covered..].trim().is_empty());
        }
    }

    #[test]
    fn windows_do_not_show() {
        let text = "Eins zwei drei. Vier fünf sechs?\n\nSieben acht neun zehn!\n".repeat(4000);
        assert!(text.len() > 3 * super::WINDOW);
        let sizer = super::Sizer(words);
        for overlap in [0, 5] {
            let config = super::ChunkConfig::new(20).with_sizer(&sizer).with_overlap(overlap).expect("less than 20");
            let at_once: Vec<&str> = super::TextSplitter::new(config).chunks(&text).collect();
            assert!(split(&text, 20, overlap, words).expect("valid arguments") == at_once, "overlap {overlap}");
        }
    }

    #[test]
    fn a_text_without_a_boundary_is_cut_in_time() {
        let text = "日".repeat(500_000);
        let start = std::time::Instant::now();
        let pieces = split(&text, 100, 0, |piece| piece.chars().count()).expect("valid arguments");
        assert!(pieces.iter().all(|piece| piece.chars().count() == 100) && pieces.concat() == text);
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
        // Every window fits, and only the whole text does not.
        let one = split(&text, 1, 0, |piece| usize::from(piece.len() == text.len()) + 1).expect("valid arguments");
        assert_eq!(one.concat(), text);
    }

    #[test]
    fn a_text_that_fits_is_untouched() {
        assert_eq!(split("  as it is \n", 10, 2, words).expect("fits"), ["  as it is \n"]);
        assert_eq!(split("", 10, 2, words).expect("fits"), [""]);
    }

    #[test]
    fn spans_count_characters() {
        for text in ["  ein Tag\u{2003}für Bären, ein Tag für Bären \n", "日本 日本 日本 日本", "na na na na na", ""]
        {
            for (capacity, overlap) in [(1, 0), (2, 1), (3, 2)] {
                let pieces = split(text, capacity, overlap, words).expect("valid arguments");
                let found = spans(text, &pieces);
                assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "{found:?}");
                for (piece, (start, end)) in pieces.iter().zip(found) {
                    assert_eq!(text.chars().skip(start).take(end - start).collect::<String>(), *piece);
                }
            }
        }
    }

    #[test]
    fn overlap_must_leave_room() {
        assert!(split("a b", 2, 2, words).is_err());
        assert!(split("a b", 0, 0, words).is_err());
    }
}
