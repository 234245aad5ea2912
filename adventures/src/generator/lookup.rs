//! Guesses at what follows, from text that is there already: prompt lookup decoding (<https://github.com/apoorvumang/prompt-lookup-decoding>).
//!
//! An answer that quotes its passages repeats runs of their tokens. What followed the last time is read together with the
//! token that is certain; a wrong guess costs a little time and changes nothing.

use std::collections::HashMap;

/// As many tokens must be the same for what followed them to be a guess.
const MATCH: usize = 3;
/// With the token that is certain, guesses fill a group of rows that the products take together.
const FIRST_GUESS: usize = 3;
/// After guesses that were all right.
const LONGEST_GUESS: usize = 7;
/// The most chances that are left out after wrong guesses.
const LONGEST_PAUSE: usize = 32;

/// Where each run of [`MATCH`] tokens was last followed by something, and how well guesses do.
pub(super) struct Lookup {
    after: HashMap<[u32; MATCH], usize>,
    /// How many tokens of the text are in `after`.
    seen: usize,
    guess: usize,
    pause: usize,
    skip: usize,
}

impl Default for Lookup {
    fn default() -> Self {
        Self { after: HashMap::new(), seen: 0, guess: FIRST_GUESS, pause: 0, skip: 0 }
    }
}

impl Lookup {
    /// Returns a guess of at most `most` tokens that follow `text`.
    pub(super) fn guess<'a>(&mut self, text: &'a [u32], most: usize) -> &'a [u32] {
        // The end of the text is followed by nothing yet.
        for end in self.seen.max(MATCH)..text.len() {
            let run = text[end - MATCH..end].try_into().expect("the slice has as many; this is a bug");
            self.after.insert(run, end);
        }
        self.seen = text.len();
        let found = text.last_chunk::<MATCH>().and_then(|run| self.after.get(run));
        let Some(start) = found.copied().filter(|_| most > 0) else { return &[] };
        if self.skip > 0 {
            self.skip -= 1;
            return &[];
        }
        &text[start..text.len().min(start + self.guess.min(most))]
    }

    /// Learns how many of `guessed` tokens were right.
    pub(super) fn learn(&mut self, guessed: usize, right: usize) {
        if right == guessed {
            (self.guess, self.pause) = (LONGEST_GUESS, 0);
        } else if right == 0 {
            self.pause = (2 * self.pause + 1).min(LONGEST_PAUSE);
            (self.guess, self.skip) = (FIRST_GUESS, self.pause);
        } else {
            self.guess = FIRST_GUESS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_last_time_is_the_guess() {
        let mut lookup = Lookup::default();
        let mut text: Vec<u32> = vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 10, 11];
        assert!(lookup.guess(&text, 9).is_empty());
        text.extend([1, 2, 3]);
        assert_eq!(lookup.guess(&text, 9), [10, 11, 1]);
        assert_eq!(lookup.guess(&text, 2), [10, 11]);
        assert!(lookup.guess(&text, 0).is_empty());
        lookup.learn(3, 3);
        assert_eq!(lookup.guess(&text, 9), [10, 11, 1, 2, 3], "no more than there is");
        text.extend([4, 5, 6]);
        assert_eq!(lookup.guess(&text, 9), [7, 8, 9, 1, 2, 3, 10]);
        assert!(Lookup::default().guess(&[1, 2], 9).is_empty());
        assert!(Lookup::default().guess(&[], 9).is_empty());
    }

    #[test]
    fn wrong_guesses_make_it_pause() {
        let mut lookup = Lookup::default();
        let text = [5; 20];
        for pause in [1, 3, 7, 15, 31, 32, 32] {
            assert_eq!(lookup.guess(&text, 9).len(), 1, "the last place that is followed by something");
            lookup.learn(1, 0);
            for _ in 0..pause {
                assert!(lookup.guess(&text, 9).is_empty());
            }
        }
        assert_eq!(lookup.guess(&text, 9).len(), 1);
        lookup.learn(1, 1);
        assert_eq!(lookup.guess(&text, 9).len(), 1);
    }
}
