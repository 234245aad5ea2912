//! Bytes to text, a piece at a time.

/// Holds the bytes of a character that is not whole yet.
///
/// The texts returned, put together, are [`String::from_utf8_lossy`] of all the bytes.
#[derive(Debug, Default)]
pub(crate) struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    /// Adds `bytes`; returns the text that is certain now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = &self.pending[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, invalid) = rest.split_at(e.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).expect("just checked; this is a bug"));
                    let Some(len) = e.error_len() else {
                        rest = invalid;
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &invalid[len..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// Returns what is left: U+FFFD where the last character never became whole.
    pub(crate) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}
