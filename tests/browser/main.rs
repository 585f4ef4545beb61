//! The dashboard in a real browser: pages of a real gateway with realistic objects, wide and narrow, light and dark.
//!
//! Needs Chromium: `tests/browser/install-chromium` gets it. What the pages look like is saved to
//! `target/tmp/browser/`. `cargo test --test browser -- NAME` runs those whose name contains NAME.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, missing_docs)]

mod apiserver;
mod chromium;
mod gateway;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};

use chromium::{Chromium, Dom, View};
use gateway::{Gateway, KEY, MEASUREMENTS};

/// A page, and what must be readable in it.
struct Page {
    name: &'static str,
    path: &'static str,
    status: u16,
    says: &'static [&'static str],
}

const PAGES: [Page; 11] = [
    Page {
        name: "overview",
        path: "/",
        status: 200,
        says: &[
            "4 of 11 need attention",
            "support",
            "research",
            "answers",
            "Progressing",
            "Awaiting approval",
            "Degraded",
            "writer-large",
        ],
    },
    Page {
        name: "namespace",
        path: "/dashboard?namespace=research",
        status: 200,
        says: &["Nothing needs attention", "assistant", "Suspended"],
    },
    Page {
        name: "flow-in-its-ramp",
        path: "/dashboard/flows/support/answers",
        status: 200,
        says: &[
            "What serves",
            "75 %",
            "c2b98e4410",
            "Rollout",
            "Shadow 20 %",
            "now",
            "Gates",
            "Feedback score",
            "Not decided",
            "Interval over time",
            "Recorded answers by arm",
            "MetricRegression",
        ],
    },
    Page {
        name: "flow-rolled-back",
        path: "/dashboard/flows/support/triage",
        status: 200,
        says: &["Degraded", "Rolled back", "failed here", "Commit another prompt"],
    },
    Page {
        name: "flow-with-variants",
        path: "/dashboard/flows/support/summaries",
        status: 200,
        says: &["concise", "bullets", "Better", "Thumbs up", "as asked for"],
    },
    Page {
        name: "evaluation",
        path: "/dashboard/evaluations/support/answers-quality",
        status: 200,
        says: &["Latest verdict", "Passed", "names_source", "0.843 to 0.949", "stale", "HTML"],
    },
    Page {
        name: "model",
        path: "/dashboard/models/support/writer",
        status: 200,
        says: &["Awaiting approval", "81d3ff02aa", "3 of 3 ready", "llmops promote mdep/writer"],
    },
    Page {
        name: "model-that-downloads",
        path: "/dashboard/models/support/writer-large",
        status: 200,
        says: &["Download", "5.6 GiB of 18.0 GiB"],
    },
    Page {
        name: "index",
        path: "/dashboard/indexes/support/handbook",
        status: 200,
        says: &["nDCG@10", "recall@10", "0.931", "3,187", "InvalidUtf8"],
    },
    Page {
        name: "index-with-failed-candidate",
        path: "/dashboard/indexes/support/policies",
        status: 200,
        says: &["Candidate failed", "g-77d0e1f2", "Rejected generations", "are these the right documents?"],
    },
    Page { name: "missing", path: "/dashboard/flows/support/none", status: 404, says: &["Not found"] },
];

/// What the tests share; the first one starts it.
struct Shared {
    gateway: Gateway,
    browser: Chromium,
}

type Started = Option<Result<Shared, String>>;

fn main() -> std::process::ExitCode {
    // The crate's HTTP client comes without a TLS provider of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut arguments = Arguments::from_args();
    // One browser, one page after the other.
    arguments.test_threads = Some(1);
    let shared: Arc<Mutex<Started>> = Arc::default();
    let trials = PAGES
        .iter()
        .map(|page| {
            let shared = Arc::clone(&shared);
            Trial::test(page.name, move || {
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let shared = shared.get_or_insert_with(|| start().map_err(|error| format!("{error:#}")));
                let shared = shared.as_mut().map_err(|error| error.clone())?;
                check(shared, page).map_err(|error| format!("{error:#}").into())
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(shared.lock().unwrap_or_else(PoisonError::into_inner).take());
    println!("what the pages look like: {}", folder().display());
    conclusion.exit_code()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("browser")
}

fn start() -> Result<Shared> {
    std::fs::create_dir_all(folder())?;
    // The browser first: without it there is no need for anything else.
    let browser = Chromium::start()?;
    Ok(Shared { gateway: Gateway::start()?, browser })
}

fn check(shared: &mut Shared, page: &Page) -> Result<()> {
    if page.name == "missing" {
        // As tests of other binaries look at a page: in a browser of its own.
        let dom = chromium::page(&format!("{}{}", shared.gateway.url, page.path), KEY)?;
        look(&dom, page, 1280)?;
    }
    for width in [1280, 800, 390] {
        for dark in [false, true] {
            let file = folder().join(format!("{}-{width}-{}.png", page.name, if dark { "dark" } else { "light" }));
            let url = format!("{}{}", shared.gateway.url, page.path);
            // Half of the views run no scripts: the pages have none and must not need any.
            let view = View { width, dark, scripts: !dark };
            let dom = shared.browser.open(&url, KEY, view, Some(&file))?;
            let context = || format!("{} at {width} px, {}", page.path, if dark { "dark" } else { "light" });
            look(&dom, page, width).with_context(context)?;
        }
    }
    Ok(())
}

fn look(dom: &Dom, page: &Page, width: u32) -> Result<()> {
    ensure!(dom.status == page.status, "answered {}", dom.status);
    for words in page.says {
        ensure!(dom.text.contains(words), "does not say {words:?}; it says:\n{}", dom.text);
    }
    dom.is_readable(width)?;
    if page.name == "flow-in-its-ramp" {
        let plot = if width > 864 { "plot wide" } else { "plot narrow" };
        ensure!(dom.html.contains(plot), "has no plot");
        ensure!(dom.text.contains(&format!("of {MEASUREMENTS} measurements")), "does not count the measurements");
    }
    Ok(())
}
