//! JUnit XML, for CI systems.
//!
//! A gate is a test: it passes, fails, or is an error when it could not be decided. A case is judged by no gate alone, so a case that
//! misses a 0/1 metric is listed as skipped with what was answered, and makes no build red; an answer that could not be had is an error.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report as Junit, TestCase, TestCaseStatus, TestSuite};

use super::{AnswerRow, CaseRow, Report};
use crate::api::evaluation::Verdict;
use crate::evaluator::metrics::is_share;

/// The report as JUnit XML.
///
/// # Errors
/// When the XML cannot be written.
pub fn render(report: &Report) -> Result<String, quick_junit::SerializeError> {
    let mut junit = Junit::new(format!("{}/{} run {}", report.namespace, report.evaluation, report.run));
    let elapsed = report.finished.duration_since(report.started);
    junit.set_time(Duration::try_from(elapsed).unwrap_or_default());
    junit.add_test_suite(gates(report));
    for variant in &report.variants {
        junit.add_test_suite(cases(report, &variant.variant));
    }
    junit.to_string()
}

fn gates(report: &Report) -> TestSuite {
    let mut suite = TestSuite::new("gates");
    for gate in &report.gates {
        let mut status = match gate.passed {
            Some(true) => TestCaseStatus::success(),
            Some(false) => TestCaseStatus::non_success(NonSuccessKind::Failure),
            None => TestCaseStatus::non_success(NonSuccessKind::Error),
        };
        status.set_message(gate.message.as_str());
        let mut test = TestCase::new(format!("{} [{}]", gate.gate, gate.variant), status);
        test.set_classname(format!("{}.{}.gates", report.namespace, report.evaluation));
        suite.add_test_case(test);
    }
    // Also a run without gates, or one whose gates were missed before a limit, must not look green when it is not.
    let mut status = match report.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::Failed => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Verdict::Inconclusive => TestCaseStatus::non_success(NonSuccessKind::Error),
    };
    status.set_message(report.message.as_str());
    let mut test = TestCase::new("verdict", status);
    test.set_classname(format!("{}.{}.gates", report.namespace, report.evaluation));
    suite.add_test_case(test);
    suite
}

fn cases(report: &Report, variant: &str) -> TestSuite {
    let mut suite = TestSuite::new(format!("cases of variant {variant}"));
    for case in &report.cases {
        for answer in case.answers.iter().filter(|answer| answer.variant == variant) {
            let name = match report.repeats {
                0 | 1 => case.id.clone(),
                _ => format!("{} (repeat {})", case.id, answer.repeat + 1),
            };
            let mut test = TestCase::new(name, status(report, answer));
            test.set_classname(format!("{}.{}.{variant}", report.namespace, report.evaluation));
            test.set_time(Duration::try_from_secs_f64(answer.seconds).unwrap_or_default());
            if !matches!(test.status, TestCaseStatus::Success { .. }) {
                test.set_system_out(transcript(case, answer));
            }
            suite.add_test_case(test);
        }
    }
    suite
}

fn status(report: &Report, answer: &AnswerRow) -> TestCaseStatus {
    if let Some(error) = &answer.error {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_message(error.as_str());
        return status;
    }
    let shares = report.metrics.iter().filter(|row| row.variant == answer.variant && is_share(row.r#type));
    let missed: Vec<&str> =
        shares.filter(|row| answer.scores.get(&row.name) == Some(&0.0)).map(|row| row.name.as_str()).collect();
    if missed.is_empty() {
        return TestCaseStatus::success();
    }
    let mut status = TestCaseStatus::skipped();
    status.set_message(format!("missed {}; the gates decide over all cases", missed.join(", ")));
    status
}

fn transcript(case: &CaseRow, answer: &AnswerRow) -> String {
    let mut text: String =
        case.columns.iter().map(|(name, value)| format!("{name}: {}\n", super::plain(value))).collect();
    if let Some(answer) = &answer.answer {
        text.push_str(&format!("answer: {answer}\n"));
    }
    text
}
