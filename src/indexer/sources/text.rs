//! From a file's bytes to text.

/// Why bytes are no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Bytes that UTF-8 does not have.
    #[error("it is not UTF-8 at byte {0}; convert it, for example by `iconv -t UTF-8`")]
    NotUtf8(usize),
    /// A NUL byte.
    #[error("it has a NUL byte at {0}, so it is no text; exclude it by spec.sources[].exclude")]
    Binary(usize),
}

impl TextError {
    /// CamelCase reason.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotUtf8(_) => "NotUtf8",
            Self::Binary(_) => "Binary",
        }
    }
}

/// UTF-8 without byte order mark; line ends become `\n`.
pub fn decode(mut bytes: Vec<u8>) -> Result<String, TextError> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    let text = String::from_utf8(bytes).map_err(|error| TextError::NotUtf8(error.utf8_error().valid_up_to()))?;
    if let Some(at) = text.find('\0') {
        return Err(TextError::Binary(at));
    }
    Ok(if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_line_ends_go_and_other_bytes_are_refused() {
        assert_eq!(decode(b"\xef\xbb\xbfa\r\nb\rc\n".to_vec()).unwrap(), "a\nb\nc\n");
        assert_eq!(decode(b"ab\xff".to_vec()).unwrap_err(), TextError::NotUtf8(2));
        assert_eq!(decode(b"a\0".to_vec()).unwrap_err().reason(), "Binary");
    }
}
