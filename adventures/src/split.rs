//! Cuts long texts into pieces that fit a window of tokens, at the best boundary there is.

use crate::error::{Error, Result, invalid};
use text_splitter::{ChunkConfig, ChunkSizer, TextSplitter};

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
    Ok(TextSplitter::new(config).chunks(text).collect())
}

#[cfg(test)]
mod tests {
    use super::split;

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
    fn a_text_that_fits_is_untouched() {
        assert_eq!(split("  as it is \n", 10, 2, words).expect("fits"), ["  as it is \n"]);
        assert_eq!(split("", 10, 2, words).expect("fits"), [""]);
    }

    #[test]
    fn overlap_must_leave_room() {
        assert!(split("a b", 2, 2, words).is_err());
        assert!(split("a b", 0, 0, words).is_err());
    }
}
