//! Builds: killed, repeated, changed, refused.

use std::path::Path;
use std::time::Duration;

use llmops::indexer::job::content_digest;
use serde_json::json;

use crate::process::{Pod, Process, plan, plan_with};

/// Bytes of all files below a folder.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.map(|entry| entry.unwrap()).map(|entry| entry.metadata().map_or(0, |metadata| metadata.len())).sum()
}

/// Many small chunks, one at a time: there is time to hit the build.
fn slow_plan() -> serde_json::Value {
    plan_with(json!({"chunking": {"maxTokens": 24}, "batch": 1}))
}

/// Waits until something happened in the store or the build ended; true while it runs.
fn runs_until(build: &mut Process, happened: impl Fn() -> bool) -> bool {
    while build.is_running() {
        if happened() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn a_build_killed_anywhere_comes_to_the_same_digest() {
    let plan = slow_plan();
    let whole = Pod::new().build_ok(&plan);
    let pod = Pod::new();
    let cache = pod.store().join("embeddings");
    let mut kills = 0;
    // In the middle of embedding, each time a little further; the cache reaches the disk in blocks of 8 KiB.
    for step in 1..=5 {
        let before = size(&cache);
        let mut build = pod.start(&plan);
        if runs_until(&mut build, || size(&cache) > before + 8192 * (step % 3)) {
            kills += 1;
        }
        build.kill();
    }
    // While the generation is written, at moments that differ from run to run.
    for _ in 0..4 {
        let mut build = pod.start(&plan);
        let pause = Duration::from_micros(fastrand::u64(0..30_000));
        if runs_until(&mut build, || pod.generations().iter().any(|name| name.starts_with(".tmp-"))) {
            std::thread::sleep(pause);
            kills += usize::from(build.is_running());
        }
        build.kill();
    }
    assert!(kills >= 5, "only {kills} kills hit a running build");
    let resumed = pod.build_ok(&plan);
    assert_eq!(resumed.generation, whole.generation);
    assert_eq!(resumed.digest, whole.digest);
    assert_eq!(pod.generations(), [whole.generation.clone().unwrap()], "nothing is left of the killed builds");
}

#[test]
fn a_second_build_embeds_only_what_changed() {
    let pod = Pod::built();
    let first = pod.build_ok(&plan());
    let embedding = first.embedding.unwrap();
    assert_eq!((embedding.tokens_last_run, embedding.reused_chunks), (0, first.chunks), "the same again is no work");

    std::fs::write(pod.document("chess.md"), "# Chess openings\n\nThe King's Gambit begins 1. e4 e5 2. f4.\n").unwrap();
    std::fs::remove_file(pod.document("glass.md")).unwrap();
    std::fs::write(pod.document("new.txt"), "Honey never spoils, because bees dry it to 17 % of water.").unwrap();
    std::fs::write(pod.document("empty.md"), "\n").unwrap();
    std::fs::write(pod.document("latin1.md"), b"caf\xe9").unwrap();
    let allowed = json!({"guards": {"minDocuments": 1, "maxFailedDocumentPercent": 50}});
    let second = pod.build_ok(&plan_with(json!({"active": first.generation, "gates": allowed})));
    assert_ne!(second.generation, first.generation);
    let counts = second.documents;
    assert_eq!((counts.added, counts.modified, counts.deleted, counts.unchanged), (1, 1, 1, 5), "{counts:?}");
    assert_eq!((counts.scanned, counts.skipped, counts.failed), (9, 1, 1));
    assert_eq!(second.failures[0].uri, "latin1.md");
    assert_eq!(second.failures[0].reason, "NotUtf8");
    let embedding = second.embedding.unwrap();
    assert_eq!(embedding.reused_chunks, second.chunks - 2);
    assert!(embedding.tokens_last_run > 0 && embedding.tokens_last_run < 80);

    // A third one; the history of one keeps the youngest that is not named.
    std::fs::remove_file(pod.document("new.txt")).unwrap();
    let third = pod.build_ok(&plan_with(json!({"active": second.generation, "gates": allowed, "history": 0})));
    let mut kept = vec![second.generation.unwrap(), third.generation.unwrap()];
    kept.sort();
    assert_eq!(pod.generations(), kept);
}

#[test]
fn a_damaged_generation_is_built_anew() {
    let pod = Pod::built();
    let report = pod.build_ok(&plan());
    let vectors = pod.generation(report.generation.as_ref().unwrap()).join("vectors.f32");
    let mut bytes = std::fs::read(&vectors).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&vectors, bytes).unwrap();
    let again = pod.build_ok(&plan());
    assert_eq!(again.digest, report.digest);
    assert_eq!(again.embedding.unwrap().tokens_last_run, 0, "vectors come from the cache");
}

#[test]
fn a_build_told_to_stop_says_so_and_keeps_its_work() {
    let pod = Pod::new();
    let cache = pod.store().join("embeddings");
    let mut build = pod.start(&slow_plan());
    // More than the vectors of the eight probe texts, which are embedded first.
    assert!(runs_until(&mut build, || size(&cache) > 20_000));
    build.signal("TERM");
    assert_eq!(build.wait().code(), Some(1));
    assert_eq!(pod.report().unwrap().reason.as_deref(), Some("Interrupted"));
    let resumed = pod.build_ok(&slow_plan());
    let reused = resumed.embedding.unwrap().reused_chunks;
    assert!(0 < reused && reused < resumed.chunks, "{reused} of {}", resumed.chunks);
}

#[test]
fn guards_and_gates_decide() {
    let pod = Pod::built();
    let golden = |queries: &[(&str, &str)]| {
        let lines: Vec<String> = queries
            .iter()
            .map(|(query, uri)| json!({"query": query, "relevant": [{"uri": uri}]}).to_string())
            .collect();
        std::fs::write(pod.at("golden/q.jsonl"), lines.join("\n")).unwrap();
    };
    let gates = |min: &str| {
        plan_with(json!({"gates": {
            "golden": {"configMapRef": {"name": "g", "key": "q.jsonl"}, "minQueries": 4},
            "metrics": [{"name": "recall", "k": 3, "min": min}, {"name": "ndcg", "k": 3, "min": "0.6", "maxRegression": "0.02"}]
        }}))
    };
    golden(&[
        ("How often do I have to feed my starter?", "bread.md"),
        ("which bay has the highest tides", "nature/tides.md"),
        ("mend a punctured tube", "bicycles.md"),
        ("undo a bad deployment", "releases.txt"),
    ]);
    let passed = pod.build_ok(&gates("0.9"));
    assert_eq!(passed.quality.len(), 2);
    assert!(passed.quality.iter().all(|quality| quality.passed && quality.active.is_none()));
    let mut compared = gates("0.9");
    compared["active"] = passed.generation.clone().into();
    let compared = pod.build_ok(&compared);
    assert_eq!(compared.quality[1].active.as_ref(), Some(&compared.quality[1].candidate));

    golden(&[("tides", "nature/tides.md"), ("chess", "gone.md"), ("lava", "gone.md"), ("glass", "glass.md")]);
    let (code, report) = pod.build(&gates("0.9"));
    assert_eq!((code, report.passed, report.reason.as_deref()), (Some(0), false, Some("QualityBelowMinimum")));
    assert!(report.message.contains("gone.md (line 2)"), "{}", report.message);
    assert_eq!(report.generation, passed.generation, "the generation is the same, only its verdict is another");

    std::fs::write(
        pod.at("golden/q.jsonl"),
        "{\"query\": \"tides\", \"relevant\": [{\"uri\": \"x\"}]}\n{\"query\": 3}\n",
    )
    .unwrap();
    let (code, report) = pod.build(&gates("0.9"));
    assert_eq!((code, report.reason.as_deref()), (Some(42), Some("GoldenSetInvalid")));
    assert!(report.message.contains("line 2"), "{}", report.message);

    let (code, report) = pod.build(&plan_with(json!({"sources": [{"name": "docs", "include": ["**/*.pdf"]}]})));
    assert_eq!((code, report.passed, report.reason.as_deref()), (Some(0), false, Some("SourceEmpty")));
    assert_eq!(report.generation, None);
}

#[test]
fn mistakes_of_the_plan_end_with_42_and_late_mounts_with_1() {
    let pod = Pod::new();
    for (changes, reason, part) in [
        (json!({"sources": [{"name": "gone", "include": ["*"]}]}), "SourceUnreachable", "source gone"),
        (json!({"chunking": {"maxTokens": 400}}), "InvalidSpec", "use at most 254"),
        (json!({"index": "Bad Name"}), "InvalidSpec", "Bad Name"),
    ] {
        let (code, report) = pod.build(&plan_with(changes));
        assert_eq!((code, report.reason.as_deref()), (Some(42), Some(reason)), "{report:?}");
        assert!(report.message.contains(part) && !report.passed, "{}", report.message);
    }
    let digest = content_digest(&[("a.md".to_owned(), "other".to_owned())].into()).unwrap();
    let late = json!({"sources": [{"name": "docs", "include": ["**/*.md"], "contentDigest": digest}]});
    let (code, report) = pod.build(&plan_with(late));
    assert_eq!((code, report.reason.as_deref()), (Some(1), Some("SourceOutdated")));
}
