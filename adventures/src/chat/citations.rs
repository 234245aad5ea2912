//! Citations in streamed text: those of passages that were given pass, all others vanish.

use super::characters::{digit, is_blank, is_digit, strip_word};
use std::collections::HashSet;

/// A bracket that is still open after so much text is no citation; it must not stop the stream.
const LONGEST: usize = 60;
/// As many digits of a number are read: no library has that many passages.
const DIGITS: usize = 9;
/// What may stand before a number; a word before its own beginning.
const WORDS: [&str; 6] = ["passage", "source", "document", "doc", "reference", "ref"];

pub(super) fn is_open(character: char) -> bool {
    matches!(character, '[' | '【' | '［')
}

pub(super) fn is_close(character: char) -> bool {
    matches!(character, ']' | '】' | '］')
}

/// Passes a text on piece by piece, holding back what may become a citation until it is clear what it is.
///
/// `[1]`, `[^1]`, `[1, 2]`, `[1-3]`, `[Passage 1]` and the same in other brackets come out as `[1]` or `[1][2]`; numbers that were
/// not given are left out, with the blanks before them. Other brackets are text like any other. However the text is cut into
/// pieces, what comes out is the same.
#[derive(Debug, Clone)]
pub struct CitationFilter {
    count: usize,
    always: bool,
    /// Blanks wait: they go with a citation that goes.
    blanks: String,
    /// Whether a line ends in `blanks`.
    line_end: bool,
    /// What follows the blanks, where it is a bracket.
    held: Option<Bracket>,
    begun: bool,
    /// What came out since a bracket was opened, and how many characters; `None` where none is open.
    open: Option<(String, usize)>,
    cited: Vec<usize>,
    seen: HashSet<usize>,
}

/// A bracket that has not been closed yet.
#[derive(Debug, Clone)]
struct Bracket {
    character: char,
    inside: String,
    /// In characters, the bracket's own included.
    len: usize,
}

impl Bracket {
    fn new(character: char) -> Self {
        Self { character, inside: String::new(), len: 1 }
    }
}

impl CitationFilter {
    /// Returns a filter for an answer from `count` passages, which are numbered from 1.
    pub fn new(count: usize) -> Self {
        Self {
            count,
            always: false,
            blanks: String::new(),
            line_end: false,
            held: None,
            begun: false,
            open: None,
            cited: Vec::new(),
            seen: HashSet::new(),
        }
    }

    /// Lets an answer that cites nothing end with `[1]`: for one that was given a single passage, and has nothing else to rest on.
    #[must_use]
    pub fn always(mut self) -> Self {
        self.always = true;
        self
    }

    /// Returns the numbers that were cited so far, in the order of their first mention.
    pub fn cited(&self) -> &[usize] {
        &self.cited
    }

    /// Returns the text that is decided now.
    pub fn feed(&mut self, piece: &str) -> String {
        let mut out = String::with_capacity(piece.len());
        for character in piece.chars() {
            self.step(character, &mut out);
        }
        out
    }

    /// Returns what is left at the end of the text: nothing of a citation that was cut off, no blanks.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        if let Some(bracket) = self.held.take() {
            let inside = bracket.inside.trim_end_matches(is_blank);
            if !inside.is_empty() && !inside.contains(is_digit) {
                self.emit_blanks(&mut out);
                self.emit(bracket.character, &mut out);
                inside.chars().for_each(|character| self.emit(character, &mut out));
            }
        }
        self.take_blanks();
        if self.always && self.cited.is_empty() {
            out.push_str(" [1]");
            self.cite(1);
        }
        out
    }

    fn step(&mut self, character: char, out: &mut String) {
        let Some(bracket) = &mut self.held else {
            if is_open(character) {
                self.held = Some(Bracket::new(character));
            } else if is_blank(character) {
                self.blanks.push(character);
                self.line_end |= character == '\n';
            } else {
                self.emit_blanks(out);
                self.emit(character, out);
            }
            return;
        };
        if is_open(character) {
            // An unclosed "[9" before it is half a citation, and goes.
            if group(&bracket.inside).is_none() {
                self.release(out);
            }
            self.held = Some(Bracket::new(character));
        } else if is_close(character) {
            self.close(character, out);
        } else {
            bracket.inside.push(character);
            bracket.len += 1;
            if bracket.len > LONGEST {
                self.release(out);
            }
        }
    }

    fn close(&mut self, character: char, out: &mut String) {
        let Some(numbers) = self.held.as_ref().and_then(|bracket| group(&bracket.inside)) else {
            self.release(out);
            self.emit(character, out);
            return;
        };
        self.held = None;
        let given = spell(&numbers, self.count);
        if given.is_empty() {
            // A line end is more than a blank before a number, and stays.
            if !self.line_end {
                self.blanks.clear();
            }
            return;
        }
        self.emit_blanks(out);
        for number in given {
            out.extend(["[", &number.to_string(), "]"]);
            self.cite(number);
        }
        self.begun = true;
        self.open = None;
    }

    fn cite(&mut self, number: usize) {
        if self.seen.insert(number) {
            self.cited.push(number);
        }
    }

    /// Lets out what is held: it is no citation.
    fn release(&mut self, out: &mut String) {
        self.emit_blanks(out);
        if let Some(bracket) = self.held.take() {
            self.emit(bracket.character, out);
            bracket.inside.chars().for_each(|character| self.emit(character, out));
        }
    }

    fn take_blanks(&mut self) -> String {
        self.line_end = false;
        std::mem::take(&mut self.blanks)
    }

    fn emit_blanks(&mut self, out: &mut String) {
        self.take_blanks().chars().for_each(|character| self.emit(character, out));
    }

    fn emit(&mut self, character: char, out: &mut String) {
        if !self.begun && is_blank(character) {
            return;
        }
        self.begun = true;
        if self.passes(character) {
            out.push(character);
        }
    }

    /// Where a citation went from inside a bracket, as in `[[9]9]`, what is left must not become one.
    fn passes(&mut self, character: char) -> bool {
        if is_open(character) {
            self.open = Some((String::new(), 0));
        } else if is_close(character) {
            if self.open.as_ref().is_some_and(|(inside, _)| group(inside).is_some()) {
                return false;
            }
            self.open = None;
        } else if let Some((inside, len)) = &mut self.open {
            inside.push(character);
            *len += 1;
            if *len > LONGEST {
                self.open = None;
            }
        }
        true
    }
}

/// A number of a group.
struct Number {
    value: usize,
    /// Whether nothing but a dash stands between it and the number before.
    after_dash: bool,
}

/// Returns the numbers of what stands in brackets, `None` where it is more than numbers.
fn group(inside: &str) -> Option<Vec<Number>> {
    let mut numbers = Vec::new();
    let mut rest = inside.trim_start_matches(is_blank);
    let mut dash = false;
    loop {
        let bare = unlabelled(rest);
        let digits = bare.len() - bare.trim_start_matches(is_digit).len();
        let (digits, after) = bare.split_at(digits);
        if digits.is_empty() {
            return None;
        }
        let value = digits.chars().filter_map(digit).take(DIGITS).fold(0, |value, digit| value * 10 + digit);
        numbers.push(Number { value, after_dash: dash && bare.len() == rest.len() });
        rest = after.trim_start_matches(is_blank);
        if rest.is_empty() {
            return Some(numbers);
        }
        (dash, rest) = link(rest)?;
    }
}

/// Returns what follows a word and a mark before a number, where they are.
fn unlabelled(text: &str) -> &str {
    let mut rest = text;
    if let Some(after) = WORDS.iter().find_map(|word| strip_word(text, word)) {
        rest = strip_word(after, "s").unwrap_or(after);
        rest = rest.strip_prefix('.').unwrap_or(rest).trim_start_matches(is_blank);
    }
    rest.strip_prefix(['^', '#']).unwrap_or(rest).trim_start_matches(is_blank)
}

/// Returns whether what links two numbers is a dash, and what follows it.
fn link(text: &str) -> Option<(bool, &str)> {
    let (dash, rest) = if let Some(rest) = text.strip_prefix(['-', '–', '—', '\u{2011}']) {
        (true, rest)
    } else {
        (false, text.strip_prefix([',', ';', '&', '/']).or_else(|| strip_word(text, "and"))?)
    };
    Some((dash, rest.trim_start_matches(is_blank)))
}

/// Returns those of the numbers from 1 to `count`, each once, ranges spelt out.
fn spell(numbers: &[Number], count: usize) -> Vec<usize> {
    let (mut spelt, mut seen) = (Vec::new(), HashSet::new());
    let mut rest = numbers.iter().peekable();
    while let Some(number) = rest.next() {
        let first = number.value;
        let last = rest.next_if(|next| next.after_dash).map_or(first, |last| last.value);
        spelt.extend((first.max(1)..=last.min(count)).filter(|number| seen.insert(*number)));
    }
    spelt
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    fn filtered<'a>(pieces: impl IntoIterator<Item = &'a str>, count: usize) -> (String, Vec<usize>) {
        let mut filter = CitationFilter::new(count);
        let mut text: String = pieces.into_iter().map(|piece| filter.feed(piece)).collect();
        text += &filter.finish();
        (text, filter.cited().to_vec())
    }

    #[test]
    fn given_numbers_pass_and_others_vanish() {
        let long = format!("A long bracket [{}1] ends.", "word ".repeat(30));
        let cases: &[(&str, &str, &[usize])] = &[
            ("Take the boots [1].", "Take the boots [1].", &[1]),
            ("Take [2] or [1], then [2].", "Take [2] or [1], then [2].", &[2, 1]),
            ("Boots [1][3][9].", "Boots [1][3].", &[1, 3]),
            ("Boots [9].", "Boots.", &[]),
            ("Boots [9] and lamps [0] and [4].", "Boots and lamps and.", &[]),
            ("Both [1, 2].", "Both [1][2].", &[1, 2]),
            ("Both [1,9;3].", "Both [1][3].", &[1, 3]),
            ("All [1-3].", "All [1][2][3].", &[1, 2, 3]),
            ("All [2–9].", "All [2][3].", &[2, 3]),
            ("All [1-999999999999].", "All [1][2][3].", &[1, 2, 3]),
            ("Twice [1, 1].", "Twice [1].", &[1]),
            ("Note [^1] and [^9].", "Note [1] and.", &[1]),
            ("Hash [#2].", "Hash [2].", &[2]),
            ("Word [Passage 1], [source 9], [passages 1 and 2].", "Word [1],, [1][2].", &[1, 2]),
            ("Twelve [12].", "Twelve.", &[]),
            ("Wide 【1】 and 【7】 and ［2］.", "Wide [1] and and [2].", &[1, 2]),
            ("Spaces [ 1 ].", "Spaces [1].", &[1]),
            ("Zeros [01] [001] [009].", "Zeros [1] [1].", &[1]),
            ("Cut off [1", "Cut off", &[]),
            ("Cut off [12", "Cut off", &[]),
            ("Cut off [", "Cut off", &[]),
            ("Cut off [1, ", "Cut off", &[]),
            ("Cut off [see", "Cut off [see", &[]),
            ("Nested [[1]] and [[9]].", "Nested [[1]] and [].", &[1]),
            ("Half [9[1].", "Half [1].", &[1]),
            ("Nested [[9]9] and [[9]1] and [[1]9].", "Nested [9 and [1 and [[1]9].", &[1]),
            ("A list [a, b] and [x](http://e.org/[1]).", "A list [a, b] and [x](http://e.org/[1]).", &[1]),
            ("Empty [] [ ].", "Empty [] [ ].", &[]),
            ("An array[2] and array[7].", "An array[2] and array.", &[2]),
            ("Closed ] only 1].", "Closed ] only 1].", &[]),
            ("[1] first, [9] then.", "[1] first, then.", &[1]),
            ("[9] The boots.", "The boots.", &[]),
            ("Line one\n[9]\nline two [1]\n", "Line one\n\nline two [1]", &[1]),
            ("Year [2024].", "Year.", &[]),
            ("Ünï [1] 剣 [2]", "Ünï [1] 剣 [2]", &[1, 2]),
            ("[\n9\n]", "", &[]),
            ("   \n", "", &[]),
            ("", "", &[]),
            (&long, &long, &[]),
            ("Digits [٢] [１, ３].", "Digits [2] [1][3].", &[2, 1, 3]),
            ("Blanks\u{1f}[9]\u{a0}[1].", "Blanks\u{a0}[1].", &[1]),
            (
                "Down [3-1] and [1-2-3] and [1 - ^3] and [1-doc 3].",
                "Down and [1][2][3] and [1][3] and [1][3].",
                &[1, 2, 3],
            ),
            ("Lines \n [9]\n [9].", "Lines \n \n .", &[]),
        ];
        for (text, expected, cited) in cases {
            let expected = ((*expected).to_owned(), cited.to_vec());
            assert_eq!(filtered([*text], 3), expected, "{text:?}");
            for (cut, _) in text.char_indices() {
                assert_eq!(filtered([&text[..cut], &text[cut..]], 3), expected, "{text:?} cut at {cut}");
            }
        }
    }

    /// What no cut of the text, and no bracket in a bracket, may lead past the filter.
    #[test]
    fn no_number_that_was_not_given_however_the_text_is_cut() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut below = |n: usize| random.next_u32() as usize % n;
        let parts =
            ["[", "]", "【", "】", "0", "1", "2", "9", " ", "\n", ",", "-", "–", "^", "passage", "and", "a", "é"];
        for _ in 0..20_000 {
            let pieces: Vec<&str> = (0..below(24)).map(|_| parts[below(parts.len())]).collect();
            let count = below(5);
            let whole = filtered([pieces.concat().as_str()], count);
            assert_eq!(whole, filtered(pieces.iter().copied(), count), "{pieces:?}");
            let (text, cited) = whole;
            let mut seen = Vec::new();
            for (at, _) in text.match_indices(is_open) {
                let rest = text[at..].trim_start_matches(is_open);
                if let Some(number) = rest.find(is_close).and_then(|end| rest[..end].parse::<usize>().ok()) {
                    assert!((1..=count).contains(&number), "{pieces:?}: {text:?}");
                    if !seen.contains(&number) {
                        seen.push(number);
                    }
                }
            }
            assert_eq!(seen, cited, "{pieces:?}: {text:?}");
        }
    }

    #[test]
    fn text_is_not_held_back_for_long() {
        let mut filter = CitationFilter::new(1);
        assert_eq!(filter.feed("Take the boots"), "Take the boots");
        assert_eq!(filter.feed(" [1"), "");
        assert_eq!(filter.feed("]"), " [1]");
        assert_eq!(filter.feed(" and [any other bracket"), " and");
        assert!(filter.feed(" that goes on and on and on and on and on and on and on").len() > 60);
    }

    #[test]
    fn an_answer_that_must_cite_does() {
        for (text, expected) in
            [("Take it. ", "Take it. [1]"), ("It [1].", "It [1]."), ("It [9].", "It. [1]"), ("", " [1]")]
        {
            let mut filter = CitationFilter::new(1).always();
            assert_eq!(filter.feed(text) + &filter.finish(), expected);
            assert_eq!(filter.cited(), [1]);
        }
    }

    /// Each of these took a time that grows with the square of the text's length where something is looked for again and again.
    #[test]
    fn hostile_text_takes_as_long_as_other_text() {
        let n = 300_000;
        for text in [
            " ".repeat(n),
            "\n".repeat(n) + &"[9]".repeat(n),
            "[".repeat(n),
            "[1".repeat(n),
            format!("[{}]", "1".repeat(n)),
        ] {
            let start = std::time::Instant::now();
            filtered([text.as_str()], 3);
            assert!(start.elapsed().as_secs() < 10, "{:?}", &text[..9]);
        }
        let count = 100_000;
        assert_eq!(filtered(["[1-999999999] [1-999999999]"], count).1.len(), count);
    }
}
