use std::collections::BTreeMap;

use super::*;
use crate::api::rag_index::{Chunking, Retrieval};
use crate::indexer::job::Embedder;

fn head() -> Head {
    Head {
        format_version: FORMAT_VERSION,
        index: "handbook".into(),
        generation: "handbook-0a1b2c".into(),
        settings: Settings {
            chunking: Chunking::default(),
            embedder: Embedder::AllMiniLmL6V2,
            query_prefix: String::new(),
            document_prefix: String::new(),
            retrieval: Retrieval::default(),
        },
        model: Model {
            name: "m".into(),
            digest: "sha256:00".into(),
            tokenizer_digest: "sha256:01".into(),
            dimensions: 3,
            probes: vec![vec![0.1, -0.7, 0.123_456_79]],
        },
        sources: ["docs", "faq"]
            .map(|name| SourceRecord { name: name.into(), revision: "r".into(), tags: BTreeMap::new() })
            .into(),
    }
}

const TEXTS: [&str; 4] = ["rolling back a release", "the release train", "café menus", "rolling stones"];
const POINTS: [[f32; 3]; 4] = [[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0], [0.8, 0.6, 0.0]];

fn draft() -> Draft<'static> {
    let chunk = |(n, text): (usize, &&str)| ChunkRecord {
        id: [n as u8; 32],
        document: 0,
        source: (n / 2) as u16,
        heading: "Guide".into(),
        context: "Guide".into(),
        text: (*text).into(),
        vector_key: [n as u8; 32],
    };
    Draft {
        head: head(),
        documents: vec![DocumentRecord { id: [7; 32], source: "docs".into(), uri: "a.md".into(), digest: [8; 32] }],
        chunks: TEXTS.iter().enumerate().map(chunk).collect(),
        vectors: POINTS.iter().map(|vector| vector.as_slice()).collect(),
        rejected: vec![],
    }
}

#[test]
fn a_generation_is_read_back_and_searched() {
    let folder = tempfile::tempdir().unwrap();
    let first = write(&folder.path().join("a"), &draft()).unwrap();
    let second = write(&folder.path().join("b"), &draft()).unwrap();
    assert_eq!(first.digest, second.digest, "equal content, equal digest");
    let generation = Generation::open(&folder.path().join("a"), Some(&first.digest)).unwrap();
    assert_eq!(generation.manifest, first);
    assert_eq!(generation.records.chunk(2).unwrap(), (draft().chunks[2].clone(), "a.md".into()));
    let positions = |found: Vec<(u32, f32)>| found.into_iter().map(|(position, _)| position).collect::<Vec<_>>();
    let all = |_: u16| true;
    assert_eq!(positions(generation.lexical.best("How do we roll \"back: releases?", 9, all).unwrap()), [0, 3, 1]);
    assert_eq!(positions(generation.lexical.best("CAFE menu", 9, all).unwrap()), [2]);
    assert_eq!(positions(generation.lexical.best("rolling", 9, |source| source == 1).unwrap()), [3]);
    assert_eq!(positions(generation.lexical.best("?! AND", 9, all).unwrap()), [0u32; 0]);
    let near = generation.vectors.nearest(&[0.6, 0.8, 0.0], 3, |_| true).unwrap();
    assert_eq!(positions(near.clone()), [1, 3, 0], "equal ones in their order");
    assert!((near[0].1 - 0.96).abs() < 1e-6);
    assert_eq!(positions(generation.vectors.nearest(&[0.6, 0.8, 0.0], 3, |position| position > 1).unwrap()), [3, 2]);
    let (documents, keys) = peek(&folder.path().join("a")).unwrap();
    assert_eq!((documents, keys.len()), (draft().documents, 4));
}

#[test]
fn a_read_only_folder_serves() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    write(&path, &draft()).unwrap();
    let before = files::hash_all(&path).unwrap();
    for entry in walkdir::WalkDir::new(&path) {
        let entry = entry.unwrap();
        let mode = if entry.file_type().is_dir() { 0o555 } else { 0o444 };
        std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let generation = Generation::open(&path, None).unwrap();
    assert_eq!(generation.lexical.best("café", 9, |_| true).unwrap().len(), 1);
    drop(generation);
    // Holds as root too, whom permissions do not stop: not one file was made or changed.
    assert_eq!(files::hash_all(&path).unwrap(), before);
    for entry in walkdir::WalkDir::new(&path) {
        std::fs::set_permissions(entry.unwrap().path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn every_content_counts_in_the_digest() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = std::collections::HashSet::new();
    let mut count = 0;
    let mut add = |change: &dyn Fn(&mut Draft)| {
        let mut draft = draft();
        change(&mut draft);
        count += 1;
        seen.insert(write(&folder.path().join(count.to_string()), &draft).unwrap().digest);
    };
    add(&|_| ());
    add(&|draft| draft.chunks[0].text.push('x'));
    add(&|draft| draft.chunks[0].heading.clear());
    add(&|draft| draft.chunks[0].source = 1);
    add(&|draft| draft.documents[0].uri.push('x'));
    add(&|draft| draft.vectors[0] = &[0.0, 1.0, 0.0]);
    add(&|draft| draft.head.settings.retrieval.top_k = 9);
    add(&|draft| draft.head.model.probes[0][0] = 0.2);
    assert_eq!(seen.len(), 8);
}

#[test]
fn damage_is_found_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let damage = |file: &str, change: &dyn Fn(&Path)| {
        let _ = std::fs::remove_dir_all(&path);
        write(&path, &draft()).unwrap();
        change(&path.join(file));
        Generation::open(&path, None).unwrap_err().to_string()
    };
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    for file in [VECTORS, RECORDS, "words/meta.json"] {
        let message = damage(file, &flip);
        assert!(message.contains(file) && message.contains("build again"), "{message}");
    }
    assert!(damage(VECTORS, &|path| std::fs::remove_file(path).unwrap()).contains("vectors.f32 is missing"));
    let edited = damage(MANIFEST, &|path| {
        let text = std::fs::read_to_string(path).unwrap().replace("\"topK\": 8", "\"topK\": 9");
        std::fs::write(path, text).unwrap();
    });
    assert!(edited.contains("its content has digest"), "{edited}");
    let format = damage(MANIFEST, &|path| {
        let text = std::fs::read_to_string(path).unwrap().replace("\"formatVersion\": 1", "\"formatVersion\": 99");
        std::fs::write(path, text).unwrap();
    });
    assert!(format.contains("format 99"), "{format}");
    write(&folder.path().join("b"), &draft()).unwrap();
    let other = Generation::open(&folder.path().join("b"), Some("sha256:ff")).unwrap_err().to_string();
    assert!(other.contains("sha256:ff was asked for"), "{other}");
}

#[test]
fn a_coarse_scan_with_rescoring_finds_the_exact_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let vectors: Vec<Vec<f32>> = (0..2000)
        .map(|_| {
            let mut vector: Vec<f32> = (0..64).map(|_| random.f32() - 0.5).collect();
            crate::indexer::embed::normalise(&mut vector);
            vector
        })
        .collect();
    let slices: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
    let path = folder.path().join("v");
    super::vectors::write(&path, &slices).unwrap();
    let stored = Vectors::open(&path, 2000, 64, |_| ()).unwrap();
    for question in vectors.iter().step_by(100) {
        let mut exact: Vec<(u32, f32)> =
            vectors.iter().zip(0..).map(|(vector, n)| (n, crate::indexer::embed::dot(vector, question))).collect();
        exact.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let found = stored.nearest(question, 10, |_| true).unwrap();
        let positions = |list: &[(u32, f32)]| list.iter().map(|(n, _)| *n).collect::<Vec<_>>();
        assert_eq!(positions(&found), positions(&exact[..10]));
    }
}

#[test]
fn an_empty_generation_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    write(&path, &Draft { head: head(), documents: vec![], chunks: vec![], vectors: vec![], rejected: vec![] })
        .unwrap();
    let generation = Generation::open(&path, None).unwrap();
    assert!(generation.lexical.best("anything", 9, |_| true).unwrap().is_empty());
    assert!(generation.vectors.nearest(&[1.0, 0.0, 0.0], 9, |_| true).unwrap().is_empty());
}

#[test]
fn one_builder_at_a_time_and_leftovers_go() {
    let folder = tempfile::tempdir().unwrap();
    let held = Lock::try_take(folder.path()).unwrap();
    assert!(held.is_some() && Lock::try_take(folder.path()).unwrap().is_none());
    drop(held);
    assert!(Lock::try_take(folder.path()).unwrap().is_some());
    let parent = folder.path().join("generations");
    write(&parent.join("x-1"), &draft()).unwrap();
    std::fs::create_dir_all(unique(&parent, "x-2")).unwrap();
    std::fs::create_dir_all(parent.join("no-manifest")).unwrap();
    remove_stale(&parent).unwrap();
    assert_eq!(list_generations(&parent).unwrap(), ["x-1"]);
    assert_eq!(std::fs::read_dir(&parent).unwrap().count(), 2);
    assert!(list_generations(&folder.path().join("none")).unwrap().is_empty());
}

/// A generation of texts by (tag `team`, text, vector); each team is a source.
pub fn fixture(folder: &Path, texts: &[(&str, &str, [f32; 3])], retrieval: Retrieval) -> Generation {
    let mut teams: Vec<&str> = texts.iter().map(|(team, ..)| *team).collect();
    teams.dedup();
    let mut head = head();
    head.settings.retrieval = retrieval;
    head.sources = teams
        .iter()
        .map(|team| SourceRecord {
            name: (*team).into(),
            revision: "r".into(),
            tags: BTreeMap::from([("team".into(), (*team).into())]),
        })
        .collect();
    let position = |team: &str| teams.iter().position(|known| *known == team).unwrap();
    let documents = teams
        .iter()
        .map(|team| DocumentRecord {
            id: crate::indexer::sources::document_id(team, &format!("{team}.md")),
            source: (*team).into(),
            uri: format!("{team}.md"),
            digest: [0; 32],
        })
        .collect();
    let chunk = |(n, (team, text, _)): (usize, &(&str, &str, [f32; 3]))| ChunkRecord {
        id: [n as u8; 32],
        document: position(team) as u32,
        source: position(team) as u16,
        heading: String::new(),
        context: String::new(),
        text: (*text).into(),
        vector_key: [n as u8; 32],
    };
    let chunks = texts.iter().enumerate().map(chunk).collect();
    let vectors = texts.iter().map(|(_, _, vector)| vector.as_slice()).collect();
    write(folder, &Draft { head, documents, chunks, vectors, rejected: vec![] }).unwrap();
    Generation::open(folder, None).unwrap()
}
