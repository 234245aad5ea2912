//! Blanks, digits and letters of any script, as Python's `re` and `str` have them: models cite in all of them.

/// The zeros of Unicode 16's decimal digits (category Nd), each followed by the other nine.
const ZEROS: [u32; 75] = [
    0x0030, 0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0x0DE6,
    0x0E50, 0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40,
    0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10, 0x104A0, 0x10D30, 0x10D40, 0x11066,
    0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650, 0x116C0, 0x116D0, 0x116DA, 0x11730, 0x118E0,
    0x11950, 0x11BF0, 0x11C50, 0x11D50, 0x11DA0, 0x11F50, 0x16A60, 0x16AC0, 0x16B50, 0x16D70, 0x1CCF0, 0x1D7CE,
    0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E4F0, 0x1E5F1, 0x1E950, 0x1FBF0,
];

/// Returns whether `character` is white space. The four separators of ASCII are, which Unicode's property leaves out.
pub(super) fn is_blank(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\x1C'..='\x1F')
}

/// Returns the value of a decimal digit of any script.
pub(super) fn digit(character: char) -> Option<usize> {
    if character.is_ascii() {
        return character.to_digit(10).map(|value| value as usize);
    }
    let after = ZEROS.partition_point(|zero| *zero <= u32::from(character));
    let value = u32::from(character) - ZEROS[after - 1];
    (value < 10).then_some(value as usize)
}

pub(super) fn is_digit(character: char) -> bool {
    digit(character).is_some()
}

/// Returns whether `character` is part of a word.
pub(super) fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Returns what is left of `text` after the `word`, a lower-case one of ASCII, in whatever case.
pub(super) fn strip_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let mut rest = text.chars();
    let found = word.chars().all(|letter| rest.next().is_some_and(|character| lower(character) == letter));
    found.then_some(rest.as_str())
}

/// The letter of ASCII that `character` is a case of, with those that fold to one: the long s, the Kelvin sign, both Turkish i.
fn lower(character: char) -> char {
    match character {
        'İ' | 'ı' => 'i',
        'ſ' => 's',
        '\u{212A}' => 'k',
        other => other.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_all_scripts_have_values() {
        assert!(ZEROS.is_sorted());
        let values: Vec<_> = "09٣９𝟗൫".chars().map(digit).collect();
        assert_eq!(values, [0, 9, 3, 9, 9, 5].map(Some));
        assert!("aé½²Ⅷ五/:\u{660}".chars().filter(|c| is_digit(*c)).eq(['\u{660}']));
        for zero in ZEROS {
            assert!((zero..zero + 10).all(|c| char::from_u32(c).is_some_and(char::is_numeric)), "{zero:x}");
        }
    }

    #[test]
    fn words_are_found_in_any_case() {
        assert_eq!(strip_word("PaſSage 1", "passage"), Some(" 1"));
        assert_eq!(strip_word("passag", "passage"), None);
        assert_eq!(strip_word("", "passage"), None);
    }
}
