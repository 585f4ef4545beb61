//! End-to-end tests on a real Kubernetes: our charts, our binary, a real language model, all as real processes.
//!
//! One cluster serves all tests, in the order of this file, and is removed at the end. The environment names the
//! programs (the Makefile sets it): `DEVCLUSTER_BIN`, `LLMOPS_BIN`, `LLMOPS_EMBEDDER_DIR`, `LLMOPS_MODEL_GGUF`,
//! `LLMOPS_LLAMA_SERVER`, `LLMOPS_MODELS_DIR`. The dashboard is looked at in Chromium, which `tests/browser/install-chromium` gets.
//! `cargo test --test e2e -- NAME` runs those whose name contains NAME.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod audit;
mod cases;
#[path = "../browser/chromium.rs"]
mod chromium;
mod cluster;
mod gateway;
mod readers;
mod samples;
mod wait;

use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Trial};

use cluster::Cluster;

fn main() -> std::process::ExitCode {
    let mut arguments = Arguments::from_args();
    // The tests share one cluster and two cores: they run one after the other, in this file's order.
    arguments.test_threads = Some(1);
    // A cluster that does not start fails every test at once, with the same words.
    let shared: Arc<OnceLock<Result<Cluster, String>>> = Arc::default();
    let trials = cases::ALL
        .iter()
        .map(|case| {
            let shared = shared.clone();
            Trial::test(case.name, move || {
                let cluster = shared
                    .get_or_init(|| Cluster::start().map_err(|error| format!("the cluster did not start: {error:#}")))
                    .as_ref()?;
                (case.run)(cluster).map_err(|error| {
                    eprintln!("{}", cluster.diagnosis());
                    format!("{error:#}").into()
                })
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(Ok(cluster)) = Arc::into_inner(shared).and_then(OnceLock::into_inner) {
        cluster.remove();
    }
    conclusion.exit_code()
}
