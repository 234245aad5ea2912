//! Stop strings in a stream of text.

/// Looks for stop strings, holding back what may yet become one.
#[derive(Debug, Default)]
pub(super) struct StopFinder {
    stops: Vec<String>,
    held: String,
}

impl StopFinder {
    /// `stops` are not empty.
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Adds `text`; returns what is certain now and whether a stop string was met. That and all after it are dropped.
    ///
    /// The one that ends first counts, so that it does not matter how the text is cut into pieces.
    pub(super) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at)));
        if let Some((_, at)) = found.min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let open = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - open);
        (std::mem::replace(&mut self.held, kept), false)
    }

    /// Returns what was held back: the text has ended without a stop string.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The length of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .rev()
        .find(|len| text.as_bytes().ends_with(&stop.as_bytes()[..*len]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::StopFinder;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut finder = StopFinder::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut text = String::new();
        for piece in pieces {
            let (some, stopped) = finder.push(piece);
            text.push_str(&some);
            if stopped {
                return (text, true);
            }
        }
        text.push_str(&finder.finish());
        (text, false)
    }

    #[test]
    fn finds_a_stop_string_at_every_split() {
        let text = "one STOP two";
        for at in 0..=text.len() {
            for to in at..=text.len() {
                let pieces = [&text[..at], &text[at..to], &text[to..]];
                assert_eq!(run(&["STOP"], &pieces), ("one ".to_owned(), true), "{pieces:?}");
                assert_eq!(run(&["STOPS"], &pieces), (text.to_owned(), false), "{pieces:?}");
            }
        }
    }

    #[test]
    fn holds_no_more_than_it_must() {
        let mut finder = StopFinder::new(vec!["\n\n".into(), "END".into()]);
        assert_eq!(finder.push("text\n"), ("text".to_owned(), false));
        assert_eq!(finder.push("more EN"), ("\nmore ".to_owned(), false));
        assert_eq!(finder.push("EN"), ("EN".to_owned(), false));
        assert_eq!(finder.push("D"), (String::new(), true));
    }

    #[test]
    fn survives_self_overlap_and_many_bytes() {
        assert_eq!(run(&["aab"], &["a", "a", "a", "b", "c"]), ("a".to_owned(), true));
        assert_eq!(run(&["ö🐉"], &["x", "ö", "🐉"]), ("x".to_owned(), true));
        assert_eq!(run(&["ö🐉"], &["x", "ö"]), ("xö".to_owned(), false));
        assert_eq!(run(&["bc", "abcd"], &["ab", "cd"]), ("a".to_owned(), true));
    }
}
