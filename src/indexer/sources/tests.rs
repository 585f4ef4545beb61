use std::os::unix::fs::symlink;

use super::*;

fn source(content_digest: Option<String>) -> PlannedSource {
    PlannedSource {
        name: "docs".into(),
        path: String::new(),
        content_digest,
        include: vec!["**/*.md".into(), "**/*.txt".into()],
        exclude: vec!["**/draft/**".into()],
        tags: BTreeMap::new(),
    }
}

fn uris(content: &Content) -> Vec<&str> {
    content.documents.iter().map(|document| document.uri.as_str()).collect()
}

/// A ConfigMap as the kubelet mounts it.
fn mount_config_map(folder: &Path, version: &str, data: &[(&str, &[u8])]) {
    let inner = folder.join(version);
    std::fs::create_dir(&inner).unwrap();
    for (key, value) in data {
        std::fs::write(inner.join(key), value).unwrap();
        let _ = std::fs::remove_file(folder.join(key));
        symlink(Path::new("..data").join(key), folder.join(key)).unwrap();
    }
    let _ = std::fs::remove_file(folder.join("..data"));
    symlink(version, folder.join("..data")).unwrap();
}

#[test]
fn a_config_map_is_read_once_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    mount_config_map(
        folder.path(),
        "..2026_1",
        &[("a.md", b"# A"), ("b.txt", b"b"), ("c.json", b"{}"), ("d.bin", b"\xff")],
    );
    let text = r##"{"a.md":"# A","b.txt":"b","c.json":"{}"}"##;
    let digest = hex::encode(Sha256::digest(text));
    let content = read(folder.path(), &source(Some(digest.clone())), 1000).unwrap();
    assert_eq!(uris(&content), ["a.md", "b.txt"]);
    let prefixed = read(folder.path(), &source(Some(format!("sha256:{digest}"))), 1000).unwrap();
    assert_eq!(prefixed, content);
    let limited = read(folder.path(), &source(Some(digest.clone())), 2).unwrap();
    assert_eq!((uris(&limited), limited.failures[0].reason.as_str()), (vec!["b.txt"], "TooLarge"));
    mount_config_map(folder.path(), "..2026_2", &[("a.md", b"# changed")]);
    let error = read(folder.path(), &source(Some(digest)), 1000).unwrap_err();
    assert!(matches!(&error, SourceError::Outdated { .. }), "{error}");
}

#[test]
fn a_folder_is_read_recursively_within_its_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let at = |path: &str| folder.path().join("kb").join(path);
    std::fs::create_dir_all(at("deep/draft")).unwrap();
    std::fs::create_dir_all(folder.path().join("other")).unwrap();
    for (path, bytes) in [
        ("z.md", &b"last"[..]),
        ("deep/a.md", b"text"),
        ("deep/draft/b.md", b"draft"),
        ("deep/empty.md", b" \n"),
        ("latin.txt", b"caf\xe9"),
        ("long.md", b"0123456789abcdef"),
        ("image.png", b"\0"),
    ] {
        std::fs::write(at(path), bytes).unwrap();
    }
    symlink(at("z.md"), at("link.md")).unwrap();
    symlink(outside.path(), at("escape.md")).unwrap();
    symlink("gone", at("broken.md")).unwrap();
    symlink(folder.path(), at("deep/cycle")).unwrap();
    let source = PlannedSource { path: "/kb".into(), ..source(None) };
    let content = read(folder.path(), &source, 10).unwrap();
    assert_eq!(uris(&content), ["deep/a.md", "link.md", "z.md"]);
    assert_eq!(content.empty, 1);
    let failed: Vec<_> = content.failures.iter().map(|f| (f.uri.as_str(), f.reason.as_str())).collect();
    assert_eq!(
        failed,
        [
            ("broken.md", "Unreadable"),
            ("escape.md", "LinkLeavesSource"),
            ("latin.txt", "NotUtf8"),
            ("long.md", "TooLarge"),
        ]
    );
    assert_eq!(read(folder.path(), &source, 10).unwrap(), content);
    std::fs::write(at("z.md"), "other").unwrap();
    assert_ne!(read(folder.path(), &source, 10).unwrap().revision, content.revision);
}

#[test]
fn mistakes_of_the_spec_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = |source: PlannedSource| read(folder.path(), &source, 10).unwrap_err().to_string();
    let outside = error(PlannedSource { path: "a/../../b".into(), ..source(None) });
    assert!(outside.contains("source docs") && outside.contains("leads out"), "{outside}");
    let missing = error(PlannedSource { path: "nothing".into(), ..source(None) });
    assert!(missing.contains("/nothing"), "{missing}");
    let pattern = error(PlannedSource { include: vec!["a{".into()], ..source(None) });
    assert!(pattern.contains("\"a{\"") && pattern.contains("include"), "{pattern}");
}

#[test]
fn identity_separates_source_and_uri() {
    assert_ne!(document_id("a", "b/c"), document_id("a/b", "c"));
    assert_ne!(document_id("a", "bc"), document_id("ab", "c"));
}
