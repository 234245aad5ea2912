//! Control tokens in text: where a template wrote them, and how to keep everyone else from writing them.

use crate::error::{Error, Result};
use aho_corasick::{AhoCorasick, MatchKind};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Finds tokens by their text, leftmost first, then longest.
#[derive(Default)]
pub(super) struct Matcher {
    automaton: Option<AhoCorasick>,
    tokens: Vec<Token>,
    by_id: HashMap<u32, usize>,
    edges: Edges,
}

/// The beginnings and ends of tokens, for binary search.
#[derive(Default)]
struct Edges {
    sorted: Vec<String>,
    reversed: Vec<String>,
    longest: usize,
}

impl Edges {
    fn new(tokens: &[Token]) -> Self {
        let mut sorted: Vec<String> = tokens.iter().map(|token| token.text.clone()).collect();
        let mut reversed: Vec<String> = sorted.iter().map(|text| text.chars().rev().collect()).collect();
        let longest = sorted.iter().map(String::len).max().unwrap_or(0);
        sorted.sort_unstable();
        reversed.sort_unstable();
        Self { sorted, reversed, longest }
    }

    /// Whether `part` is the beginning of a token.
    fn begins(&self, part: &str) -> bool {
        Self::has_prefix(&self.sorted, part)
    }

    /// Whether `part` is the end of a token.
    fn ends(&self, part: &str) -> bool {
        Self::has_prefix(&self.reversed, &part.chars().rev().collect::<String>())
    }

    fn has_prefix(sorted: &[String], part: &str) -> bool {
        let at = sorted.partition_point(|text| text.as_str() < part);
        sorted.get(at).is_some_and(|text| text.starts_with(part))
    }
}

/// A token by its text. `trim_left` and `trim_right` say that it takes the white space beside it, as some of Phi's do.
#[derive(Debug, Clone, Default)]
pub(super) struct Token {
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) trim_left: bool,
    pub(super) trim_right: bool,
}

/// A token's place in a text.
pub(super) struct Found {
    pub(super) id: u32,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Matcher {
    pub(super) fn new(tokens: Vec<Token>) -> Result<Self> {
        let tokens: Vec<_> = tokens.into_iter().filter(|token| !token.text.is_empty()).collect();
        if tokens.is_empty() {
            return Ok(Self::default());
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| &token.text))
            .map_err(|e| Error::Tokenizer(format!("building the matcher of {} tokens: {e}", tokens.len())))?;
        let by_id = tokens.iter().enumerate().map(|(i, token)| (token.id, i)).collect();
        let edges = Edges::new(&tokens);
        Ok(Self { automaton: Some(automaton), tokens, by_id, edges })
    }

    pub(super) fn find(&self, text: &str) -> Vec<Found> {
        let Some(automaton) = &self.automaton else { return Vec::new() };
        let mut found: Vec<Found> = Vec::new();
        for m in automaton.find_iter(text) {
            let token = &self.tokens[m.pattern().as_usize()];
            let (mut start, mut end) = (m.start(), m.end());
            let taken = found.last().map_or(0, |f| f.end);
            if start < taken {
                continue;
            }
            if token.trim_left {
                start = taken + text[taken..start].trim_end().len();
            }
            if token.trim_right {
                end = text.len() - text[end..].trim_start().len();
            }
            found.push(Found { id: token.id, start, end });
        }
        found
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.by_id.get(&id).map(|i| self.tokens[*i].text.as_str())
    }
}

/// Carries texts through a chat template so that the control tokens in its output are its own.
///
/// A mark, a character that occurs in none of the texts, breaks up whatever in a text reads as a control token, and whatever at
/// its edges could become one beside the template's words. The mark survives trimming, splitting and joining; lifting it afterwards
/// gives the text as it was, and a text without control tokens is tokenized as if it had never been shielded.
pub(crate) struct Shield<'a> {
    control: &'a Matcher,
    mark: char,
}

impl<'a> Shield<'a> {
    pub(super) fn new<'t>(control: &'a Matcher, texts: impl IntoIterator<Item = &'t str>) -> Self {
        let used: HashSet<char> = texts.into_iter().flat_map(str::chars).filter(|c| is_private(*c)).collect();
        let mark = ('\u{f0000}'..='\u{ffffd}')
            .find(|c| !used.contains(c) && !control.tokens.iter().any(|token| token.text.contains(*c)))
            .unwrap_or('\u{10fffd}');
        Self { control, mark }
    }

    /// Returns `text` with marks in it.
    pub(crate) fn cover(&self, text: &str) -> String {
        let mut marks: Vec<usize> = Vec::new();
        // After the first character of each occurrence, and on from there: an occurrence may overlap the next.
        let mut from = 0;
        while let Some(found) = self.control.find_first(&text[from..]) {
            let first = text[from + found..].chars().next().map_or(1, char::len_utf8);
            from += found + first;
            marks.push(from);
        }
        // A template may trim, so the edges are those of the text with and without its white space.
        let edges = &self.control.edges;
        for start in [0, text.len() - text.trim_start().len()] {
            let rest = &text[start..];
            let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|len| *len < edges.longest);
            if ends.into_iter().any(|len| edges.ends(&rest[..len])) {
                marks.push(start);
            }
        }
        for end in [text.len(), text.trim_end().len()] {
            let rest = &text[..end];
            let starts = rest.char_indices().rev().map(|(at, _)| at).take_while(|at| end - at < edges.longest);
            if starts.into_iter().any(|at| edges.begins(&rest[at..])) {
                marks.push(end);
            }
        }
        marks.sort_unstable();
        marks.dedup();
        let mut covered = String::with_capacity(text.len() + marks.len() * self.mark.len_utf8());
        let mut last = 0;
        for at in marks {
            covered.push_str(&text[last..at]);
            covered.push(self.mark);
            last = at;
        }
        covered.push_str(&text[last..]);
        covered
    }

    /// Returns `text` without the marks.
    pub(super) fn lift<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if text.contains(self.mark) { Cow::Owned(text.replace(self.mark, "")) } else { Cow::Borrowed(text) }
    }
}

fn is_private(c: char) -> bool {
    ('\u{f0000}'..='\u{10ffff}').contains(&c)
}

impl Matcher {
    fn find_first(&self, text: &str) -> Option<usize> {
        self.automaton.as_ref()?.find(text).map(|m| m.start())
    }
}
