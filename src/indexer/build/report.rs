//! The report of a build, and where it is left for the controller.

use std::path::PathBuf;

use crate::indexer::job::BuildReport;

/// Length of a termination message in bytes; the kubelet cuts longer ones, which would leave broken JSON.
const MAX_BYTES: usize = 4096;
const MAX_MESSAGE_CHARS: usize = 1000;
const MAX_FAILURE_CHARS: usize = 300;

/// Where a container leaves its last words.
pub fn termination_log() -> PathBuf {
    std::env::var_os("LLMOPS_TERMINATION_LOG").map_or_else(|| PathBuf::from("/dev/termination-log"), PathBuf::from)
}

/// The report as JSON of at most 4096 bytes: failures are dropped from the end until it fits.
pub fn fit(mut report: BuildReport) -> String {
    report.message = cut(&report.message, MAX_MESSAGE_CHARS);
    for failure in &mut report.failures {
        failure.message = cut(&failure.message, MAX_FAILURE_CHARS);
    }
    loop {
        let text = serde_json::to_string(&report).unwrap_or_default();
        if text.len() <= MAX_BYTES {
            return text;
        }
        if report.failures.pop().is_none() && report.quality.pop().is_none() {
            let shorter = report.message.chars().count() / 2;
            report.message = cut(&report.message, shorter);
        }
    }
}

fn cut(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    let kept: String = text.chars().take(chars.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// Leaves text as the container's last words. A failure is only logged: the exit code still speaks.
pub fn leave(text: &str) {
    let path = termination_log();
    if let Err(error) = std::fs::write(&path, text) {
        tracing::warn!(path = %path.display(), %error, "cannot write the termination message");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::rag_index::{DocumentCounts, DocumentFailure};

    #[test]
    fn a_report_always_fits_and_stays_json() {
        let failure = |n: usize| DocumentFailure {
            uri: format!("deep/folder/document-{n}.md"),
            reason: "NotUtf8".into(),
            message: "é\"\n".repeat(400),
        };
        let mut report = BuildReport {
            generation: Some("handbook-0a1b2c".into()),
            digest: None,
            passed: false,
            reason: Some("TooManyFailures".into()),
            message: "\u{1}".repeat(5000),
            documents: DocumentCounts::default(),
            failures: (0..50).map(failure).collect(),
            chunks: 0,
            bytes: 0,
            embedding: None,
            quality: vec![],
        };
        for failures in [50, 3, 0] {
            report.failures.truncate(failures);
            let text = fit(report.clone());
            assert!(text.len() <= MAX_BYTES, "{}", text.len());
            let read: BuildReport = serde_json::from_str(&text).unwrap();
            assert_eq!(read.reason.as_deref(), Some("TooManyFailures"));
        }
        report.message = "short".into();
        report.failures = (0..50).map(failure).collect();
        let read: BuildReport = serde_json::from_str(&fit(report)).unwrap();
        assert!(read.message == "short" && read.failures.len() > 3 && read.failures.len() < 50);
    }
}
