//! Termination messages: what a container says at its end, where the controllers read it.

use std::path::PathBuf;

use serde::Serialize;

/// Longest termination message that Kubernetes keeps, in bytes.
pub const LIMIT: usize = 4096;

/// Where this container's termination message goes.
#[derive(clap::Args, Clone, Debug)]
pub struct TerminationLog {
    /// File that Kubernetes reads when the container ends.
    #[arg(long, env = "LLMOPS_TERMINATION_LOG", default_value = "/dev/termination-log", hide = true)]
    pub termination_log: PathBuf,
}

impl TerminationLog {
    /// Writes the message as JSON. A failure is logged, not returned: the exit code and the log still tell the outcome.
    pub fn write<T: Serialize>(&self, message: &T) {
        let text = match serde_json::to_string(message) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!("cannot write the termination message as JSON: {error}");
                return;
            }
        };
        if text.len() > LIMIT {
            tracing::warn!("the termination message has {} bytes; Kubernetes keeps {LIMIT}", text.len());
        }
        if let Err(error) = std::fs::write(&self.termination_log, text) {
            tracing::warn!("cannot write the termination message to {}: {error}", self.termination_log.display());
        }
    }
}

/// The text with at most `bytes` bytes, cut at a character and marked with `…`.
pub fn shorten(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let mut end = bytes.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortens_at_characters() {
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("ääää", 7), "ää…");
        assert!(shorten(&"é".repeat(500), 100).len() <= 100);
    }
}
