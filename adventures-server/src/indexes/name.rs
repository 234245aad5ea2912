//! Names of indexes: the only way from a request to a path.

use std::fmt;

/// The longest name.
const MAX: usize = 63;
/// What Windows takes for devices.
const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];

/// The name of an index: `a`–`z`, digits, `_` and `-`, the first of them no sign, 63 at most, and no device of Windows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IndexName(String);

/// What is no name of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAName(String);

impl fmt::Display for NotAName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.0.chars().take(100).collect();
        write!(
            f,
            "index_name {shown:?}: expected a-z, 0-9, '_' and '-', beginning with a letter or digit, {MAX} at most, and no \
             device's name such as \"nul\""
        )
    }
}

impl TryFrom<&str> for IndexName {
    type Error = NotAName;

    fn try_from(name: &str) -> Result<Self, NotAName> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let port = name.strip_prefix("com").or_else(|| name.strip_prefix("lpt"));
        let device = DEVICES.contains(&name) || port.is_some_and(|n| n.len() == 1 && n.as_bytes()[0].is_ascii_digit());
        let fits = name.bytes().next().is_some_and(plain)
            && name.len() <= MAX
            && name.bytes().all(|b| plain(b) || b == b'_' || b == b'-');
        if fits && !device { Ok(Self(name.to_owned())) } else { Err(NotAName(name.to_owned())) }
    }
}

impl fmt::Display for IndexName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<std::path::Path> for IndexName {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Component, Path};

    #[test]
    fn names_are_names() {
        let long = "a".repeat(63);
        for name in ["a", "0", "shop", "shop-2", "a_b", "com", "com10", "console", "lptx", &long] {
            assert_eq!(IndexName::try_from(name).map(|name| name.to_string()).as_deref(), Ok(name));
        }
        let longer = "a".repeat(64);
        let others = [
            "",
            ".",
            "..",
            "...",
            "/",
            "a/b",
            "a\\b",
            "../a",
            "a/..",
            "~",
            "~root",
            "A",
            "Shop",
            "-a",
            "_a",
            ".a",
            "a.b",
            "a b",
            " a",
            "a ",
            "a\n",
            "\0",
            "a\0b",
            "é",
            "ａ",
            "a\u{301}",
            "con",
            "nul",
            "aux",
            "prn",
            "com1",
            "com0",
            "lpt9",
            "c:",
            "c:a",
            "%2e%2e",
            "a%2fb",
            "a:b",
            "a*",
            "a?",
            "a|b",
            "<a>",
            "\"a\"",
            "file:a",
            "\u{202e}a",
            "a\u{200b}",
            &longer,
        ];
        for name in others {
            assert!(IndexName::try_from(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn no_name_leads_elsewhere() {
        // Ten thousand names of what paths are made of, from a generator of our own: the same in every run.
        let parts = [
            "..", ".", "/", "\\", "a", "Z", "0", "-", "_", "~", "%", "\0", "\n", " ", "é", ":", "con", "nul",
            "\u{2215}",
        ];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % n
        };
        let mut names = 0;
        for _ in 0..10_000 {
            let name: String = (0..next(6)).map(|_| parts[next(parts.len())]).collect();
            if let Ok(name) = IndexName::try_from(name.as_str()) {
                names += 1;
                let path = Path::new("root").join(&name);
                let below: Vec<Component<'_>> = path.components().skip(1).collect();
                assert!(matches!(below[..], [Component::Normal(_)]), "{name}");
            }
        }
        assert!(names > 100, "{names} were names");
    }
}
