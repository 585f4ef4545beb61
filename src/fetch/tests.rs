use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use futures::stream;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use super::download::{Download, Error};
use super::progress::{Progress, Snapshot, serve};

/// How the server treats the next request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Turn {
    /// Whole answer, by the rules of HTTP.
    Serve,
    /// The connection breaks after so many bytes.
    Cut(usize),
    /// The connection stays open after so many bytes.
    Stall(usize),
    /// Only a status.
    Status(u16),
}

#[derive(Debug)]
struct Site {
    file: Bytes,
    etag: Option<&'static str>,
    ranges: bool,
    turns: Vec<Turn>,
    /// Served once the turns are used up: content and tag of a newer version.
    then: Option<(Bytes, &'static str)>,
    requests: Vec<HashMap<String, String>>,
}

type Shared = Arc<Mutex<Site>>;

fn site(turns: &[Turn]) -> Site {
    let file: Vec<u8> = (0..200_000u32).flat_map(|number| number.to_le_bytes()).collect();
    Site {
        file: file.into(),
        etag: Some("\"one\""),
        ranges: true,
        turns: turns.iter().rev().copied().collect(),
        then: None,
        requests: Vec::new(),
    }
}

async fn start(site: Site) -> (SocketAddr, Shared) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let shared = Arc::new(Mutex::new(site));
    let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, shared)
}

async fn answer(State(shared): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    if uri.path() == "/loop" {
        return Redirect::temporary("/loop").into_response();
    }
    if uri.path() == "/hop" {
        return Redirect::temporary("/model.gguf").into_response();
    }
    let mut site = shared.lock().unwrap();
    let seen = headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    site.requests.push(seen);
    let turn = site.turns.pop().unwrap_or(Turn::Serve);
    if site.requests.len() > 1
        && site.turns.is_empty()
        && let Some((file, etag)) = site.then.clone()
    {
        (site.file, site.etag) = (file, Some(etag));
    }
    let mut from = 0;
    let mut response = Response::builder();
    let asked = headers.get(header::RANGE).map(|range| range.to_str().unwrap().to_owned());
    let same = headers.get(header::IF_RANGE).is_none_or(|tag| Some(tag.to_str().unwrap()) == site.etag);
    if let Some(range) = asked.filter(|_| site.ranges && same) {
        from = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
        if from >= site.file.len() {
            return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
        }
        let last = site.file.len() - 1;
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {from}-{last}/{}", last + 1));
    }
    if let Some(etag) = site.etag {
        response = response.header(header::ETAG, etag);
    }
    let body = site.file.slice(from..);
    response = response.header(header::CONTENT_LENGTH, body.len());
    let first = |count: usize| Ok::<_, std::io::Error>(body.slice(..count.min(body.len())));
    let body = match turn {
        Turn::Serve => Body::from(body),
        Turn::Cut(count) => Body::from_stream(futures::StreamExt::chain(
            stream::iter([first(count)]),
            stream::once(async {
                // The server sends what it has while the body is pending; an error at once would drop it.
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                Err(std::io::Error::other("cut"))
            }),
        )),
        Turn::Stall(count) => {
            Body::from_stream(futures::StreamExt::chain(stream::iter([first(count)]), stream::pending()))
        }
        Turn::Status(code) => return StatusCode::from_u16(code).unwrap().into_response(),
    };
    response.body(body).unwrap()
}

fn download(address: SocketAddr, path: &str, shared: &Shared, folder: &Path) -> Download {
    Download {
        url: format!("http://{address}{path}?signature=hidden"),
        sha256: hex::encode(Sha256::digest(&shared.lock().unwrap().file)),
        out: folder.join("cache/model.gguf"),
        stall_timeout: Duration::from_secs(60),
        token: None,
        pause: Duration::from_millis(1),
    }
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder.join("cache"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn resumes_where_the_transfer_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (address, shared) = start(site(&[Turn::Cut(300_000), Turn::Status(503), Turn::Cut(100_000)])).await;
    let download = download(address, "/model.gguf", &shared, folder.path());
    let progress = Progress::default();
    assert_eq!(download.run(&progress).await.unwrap(), 800_000);
    assert_eq!(std::fs::read(&download.out).unwrap(), shared.lock().unwrap().file);
    assert_eq!(progress.snapshot(), Snapshot { bytes: 800_000, total_bytes: Some(800_000) });
    let requests = &shared.lock().unwrap().requests;
    let ranges: Vec<_> = requests.iter().map(|request| request.get("range").map(String::as_str)).collect();
    assert_eq!(ranges, [None, Some("bytes=300000-"), Some("bytes=300000-"), Some("bytes=400000-")]);
    assert_eq!(requests[3]["if-range"], "\"one\"");
    assert_eq!(files(folder.path()), [".model.gguf.lock", "model.gguf"]);
}

#[tokio::test]
async fn a_killed_download_is_resumed_by_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let (address, shared) = start(site(&[Turn::Stall(500_000)])).await;
    let first = Download {
        stall_timeout: Duration::from_millis(200),
        ..download(address, "/model.gguf", &shared, folder.path())
    };
    let error = first.run(&Progress::default()).await.unwrap_err();
    assert!(matches!(error, Error::Stalled { bytes: 500_000, .. }), "{error}");
    assert_eq!(error.reason(), "DownloadStalled");
    assert!(!first.out.exists());
    assert_eq!(first.run(&Progress::default()).await.unwrap(), 800_000);
    assert_eq!(shared.lock().unwrap().requests[1]["range"], "bytes=500000-");
}

#[tokio::test]
async fn a_wrong_digest_fails_for_good_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (address, shared) = start(site(&[])).await;
    let download = Download { sha256: "0".repeat(64), ..download(address, "/model.gguf", &shared, folder.path()) };
    let error = download.run(&Progress::default()).await.unwrap_err();
    assert_eq!(error.reason(), "DigestMismatch");
    let message = error.to_string();
    assert!(message.contains("spec.model.source.http.sha256") && message.contains(&"0".repeat(64)), "{message}");
    assert!(!message.contains("hidden"), "{message}");
    assert_eq!(files(folder.path()), [".model.gguf.lock"]);
    assert_eq!(shared.lock().unwrap().requests.len(), 1);
}

#[tokio::test]
async fn a_server_without_ranges_gets_whole_requests() {
    let folder = tempfile::tempdir().unwrap();
    let (address, shared) = start(Site { ranges: false, etag: None, ..site(&[Turn::Cut(300_000)]) }).await;
    let download = download(address, "/model.gguf", &shared, folder.path());
    assert_eq!(download.run(&Progress::default()).await.unwrap(), 800_000);
    assert_eq!(std::fs::read(&download.out).unwrap(), shared.lock().unwrap().file);
}

#[tokio::test]
async fn a_file_that_changed_meanwhile_is_downloaded_anew() {
    for etag in [Some("\"one\""), None] {
        let folder = tempfile::tempdir().unwrap();
        let newer = Bytes::from(vec![7; 600_000]);
        let cut = site(&[Turn::Cut(300_000)]);
        let (address, shared) = start(Site { etag, then: Some((newer.clone(), "\"two\"")), ..cut }).await;
        let download = Download {
            sha256: hex::encode(Sha256::digest(&newer)),
            ..download(address, "/model.gguf", &shared, folder.path())
        };
        // With a tag the server answers 200 with the new file; without one the mixed file's digest tells.
        assert_eq!(download.run(&Progress::default()).await.unwrap(), 600_000);
        assert_eq!(std::fs::read(&download.out).unwrap(), newer);
    }
}

#[tokio::test]
async fn redirects_are_followed_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let (address, shared) = start(site(&[])).await;
    let looping = download(address, "/loop", &shared, folder.path());
    let error = looping.run(&Progress::default()).await.unwrap_err();
    assert_eq!(error.reason(), "DownloadFailed");
    assert!(error.to_string().contains("redirect"), "{error}");
    assert!(shared.lock().unwrap().requests.is_empty());
    let hop = download(address, "/hop", &shared, folder.path());
    assert_eq!(hop.run(&Progress::default()).await.unwrap(), 800_000);
}

#[tokio::test]
async fn two_fetchers_of_one_folder_download_once() {
    let folder = tempfile::tempdir().unwrap();
    let (address, shared) = start(site(&[Turn::Cut(100_000)])).await;
    let download = download(address, "/model.gguf", &shared, folder.path());
    let (a, b) = (Progress::default(), Progress::default());
    let (one, two) = tokio::join!(download.run(&a), download.run(&b));
    assert_eq!((one.unwrap(), two.unwrap()), (800_000, 800_000));
    assert_eq!(shared.lock().unwrap().requests.len(), 2);
    assert_eq!(std::fs::read(&download.out).unwrap(), shared.lock().unwrap().file);
}

#[tokio::test]
async fn what_is_there_is_not_asked_for_again_and_a_broken_copy_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (address, shared) = start(site(&[])).await;
    let download = download(address, "/model.gguf", &shared, folder.path());
    std::fs::create_dir_all(folder.path().join("cache")).unwrap();
    std::fs::write(&download.out, b"broken").unwrap();
    download.run(&Progress::default()).await.unwrap();
    download.run(&Progress::default()).await.unwrap();
    assert_eq!(shared.lock().unwrap().requests.len(), 1);
}

#[tokio::test]
async fn a_whole_file_that_was_not_put_in_place_needs_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (address, shared) = start(site(&[Turn::Cut(800_000)])).await;
    let download = download(address, "/model.gguf", &shared, folder.path());
    let file = shared.lock().unwrap().file.clone();
    std::fs::create_dir_all(folder.path().join("cache")).unwrap();
    std::fs::write(folder.path().join("cache/.model.gguf.partial"), &file).unwrap();
    let validator = format!(r#"{{"url":"http://{address}/model.gguf","etag":"\"one\""}}"#);
    std::fs::write(folder.path().join("cache/.model.gguf.validator"), validator).unwrap();
    assert_eq!(download.run(&Progress::default()).await.unwrap(), 800_000);
}

#[tokio::test]
async fn refusals_and_dead_servers_say_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let (address, shared) = start(site(&[Turn::Status(401), Turn::Status(404)])).await;
    let with_token =
        Download { token: Some("secret".into()), ..download(address, "/model.gguf", &shared, folder.path()) };
    let error = with_token.run(&Progress::default()).await.unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("credentialsRef"), "{error}");
    assert_eq!(shared.lock().unwrap().requests[0]["authorization"], "Bearer secret");
    let error = with_token.run(&Progress::default()).await.unwrap_err().to_string();
    assert!(error.contains("404") && error.contains("spec.model.source.http.url"), "{error}");
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dead = download(unused, "/model.gguf", &shared, folder.path());
    let error = dead.run(&Progress::default()).await.unwrap_err();
    assert_eq!(error.reason(), "DownloadFailed");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn progress_is_served_as_json() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let progress = Arc::new(Progress::default());
    progress.set_bytes(5);
    let address = serve("127.0.0.1:0".parse().unwrap(), Arc::clone(&progress)).await.unwrap();
    let get = || async { reqwest::get(format!("http://{address}/progress")).await.unwrap().text().await.unwrap() };
    assert_eq!(get().await, r#"{"bytes":5}"#);
    progress.set_total(Some(10));
    assert_eq!(get().await, r#"{"bytes":5,"totalBytes":10}"#);
}

#[tokio::test]
async fn the_process_says_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (address, shared) = start(site(&[])).await;
    let right = hex::encode(Sha256::digest(&shared.lock().unwrap().file));
    let log = folder.path().join("termination");
    let args = |path: &str, sha256: &str| super::Args {
        url: format!("http://{address}{path}"),
        sha256: sha256.to_owned(),
        out: folder.path().join("cache/model.gguf"),
        progress_listen: Some("127.0.0.1:0".parse().unwrap()),
        stall_timeout: Duration::from_secs(60),
        token: Some(String::new()),
        termination: crate::termination::TerminationLog { termination_log: log.clone() },
    };
    let said = || serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(super::run(args("/model.gguf", &"1".repeat(64))).await, std::process::ExitCode::from(42));
    assert_eq!(said()["reason"], "DigestMismatch");
    assert_eq!(super::run(args("/loop", &right)).await, std::process::ExitCode::FAILURE);
    assert_eq!(said()["reason"], "DownloadFailed");
    assert_eq!(super::run(args("/model.gguf", &right)).await, std::process::ExitCode::SUCCESS);
    assert!(!shared.lock().unwrap().requests[0].contains_key("authorization"), "an empty token is none");
}

#[test]
fn arguments_are_checked() {
    assert_eq!(super::sha256(&"AB".repeat(32)).unwrap(), "ab".repeat(32));
    assert!(super::sha256("abc").is_err());
    assert_eq!(super::positive_duration("1m30s").unwrap(), Duration::from_secs(90));
    for wrong in ["0s", "-5s", "5", "soon"] {
        assert!(super::positive_duration(wrong).is_err(), "{wrong}");
    }
}
