//! The download: resumed where it was cut, checked, and put in place at once.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE, RANGE, RETRY_AFTER,
};
use reqwest::{Client, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio::time::timeout;

use super::partial::{Partial, Validator, hash};
use super::progress::Progress;

/// Redirects followed; one more fails.
const MAX_REDIRECTS: usize = 10;
/// Attempts in a row that bring no byte before the download fails. Attempts that bring some are not counted.
const MAX_FRUITLESS: u32 = 5;
/// Resumed files with a wrong digest before the download fails.
const MAX_MIXED: u32 = 3;
/// Longest pause between attempts.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// What is downloaded, and how patiently.
#[derive(Clone, Debug)]
pub struct Download {
    /// Address of the file.
    pub url: String,
    /// SHA-256 that the file must have, lower-case hex.
    pub sha256: String,
    /// Where the file goes.
    pub out: PathBuf,
    /// Longest time without a byte.
    pub stall_timeout: Duration,
    /// Bearer token; sent to the address's host only, not to where it redirects.
    pub token: Option<String>,
    /// First pause between attempts; it doubles with each.
    pub pause: Duration,
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server's file is another one.
    #[error(
        "the file at {url} has the SHA-256 {actual}, but spec.model.source.http.sha256 is {expected}; correct the digest or the address"
    )]
    DigestMismatch {
        /// Address without its query.
        url: String,
        /// As the spec says.
        expected: String,
        /// As downloaded.
        actual: String,
    },
    /// No byte came for too long.
    #[error(
        "no byte from {url} for {} s, at {bytes} bytes; what is there is kept and the next attempt resumes. Check the network, or raise spec.model.startup.downloadTimeout",
        after.as_secs()
    )]
    Stalled {
        /// Address without its query.
        url: String,
        /// The limit.
        after: Duration,
        /// Bytes on disk.
        bytes: u64,
    },
    /// The server refuses.
    #[error("{url} answered {status}; {hint}")]
    Refused {
        /// Address without its query.
        url: String,
        /// Its answer.
        status: StatusCode,
        /// What helps.
        hint: &'static str,
    },
    /// The server cannot be reached, or the transfer breaks again and again.
    #[error("cannot download {url}: {cause}")]
    Failed {
        /// Address without its query.
        url: String,
        /// What happened last.
        cause: String,
    },
    /// The cache volume cannot be used.
    #[error("cannot write {}: {source}{}", path.display(), full(source))]
    Disk {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The process was asked to end.
    #[error("interrupted; what is downloaded is kept and the next attempt resumes")]
    Interrupted,
}

impl Error {
    /// Reason for the termination message.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::DigestMismatch { .. } => "DigestMismatch",
            Self::Stalled { .. } => "DownloadStalled",
            _ => "DownloadFailed",
        }
    }
}

fn full(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; the cache volume is full: raise spec.model.cache.size"
        }
        _ => "",
    }
}

/// How an attempt ended when it did not fail for good.
enum Attempt {
    /// The whole file is on disk; whether it was put together from more than one answer.
    Whole { resumed: bool },
    /// The transfer broke; after the pause the server asked for, if any, it is tried again.
    Broken { cause: String, retry_after: Option<Duration> },
}

impl Download {
    /// Downloads the file unless it is there already; returns its size in bytes.
    ///
    /// # Errors
    /// As [`Error`] lists.
    pub async fn run(&self, progress: &Progress) -> Result<u64, Error> {
        let client = self.client()?;
        let partial = Partial::lock(&self.out, progress).await.map_err(|source| self.disk(source))?;
        let (hasher, length) = hash(&self.out).await.map_err(|source| self.disk(source))?;
        if length > 0 && self.matches(hasher) {
            progress.set_bytes(length);
            progress.set_total(Some(length));
            return Ok(length);
        }
        let mut fruitless = 0;
        let mut mixed = 0;
        loop {
            let before = length_of(&partial).await;
            match self.attempt(&client, &partial, progress).await? {
                Attempt::Whole { resumed } => {
                    let (hasher, length) = hash(&partial.data).await.map_err(|source| self.disk(source))?;
                    if self.matches(hasher.clone()) {
                        partial.finish().await.map_err(|source| self.disk(source))?;
                        return Ok(length);
                    }
                    partial.discard().await.map_err(|source| self.disk(source))?;
                    progress.set_bytes(0);
                    // Parts of two versions give a wrong digest too, so only a file from one answer convicts the server.
                    mixed += 1;
                    if !resumed || mixed > MAX_MIXED {
                        return Err(Error::DigestMismatch {
                            url: self.shown_url(),
                            expected: self.sha256.clone(),
                            actual: hex::encode(hasher.finalize()),
                        });
                    }
                    tracing::warn!("the resumed file has a wrong digest; downloading it anew");
                }
                Attempt::Broken { cause, retry_after } => {
                    fruitless = if length_of(&partial).await > before { 1 } else { fruitless + 1 };
                    if fruitless >= MAX_FRUITLESS {
                        return Err(Error::Failed { url: self.shown_url(), cause });
                    }
                    let backoff = self.pause.saturating_mul(1 << (fruitless - 1)).min(MAX_PAUSE);
                    let pause = retry_after.map_or(backoff, |asked| asked.min(MAX_PAUSE));
                    tracing::warn!("{cause}; trying again in {:.1} s", pause.as_secs_f64());
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// One request, resumed if there is something to resume.
    async fn attempt(&self, client: &Client, partial: &Partial, progress: &Progress) -> Result<Attempt, Error> {
        let mut offset = length_of(partial).await;
        let known = partial.validator().await.filter(|validator| validator.url == self.shown_url());
        if known.is_none() {
            // Bytes of an unknown version: another address, or a server that names no versions.
            offset = 0;
        }
        progress.set_bytes(offset);
        let mut request = client.get(&self.url).header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(validator) = known.as_ref().filter(|_| offset > 0) {
            request = request.header(RANGE, format!("bytes={offset}-"));
            if !validator.etag.is_empty() {
                request = request.header(IF_RANGE, validator.etag.as_str());
            }
        }
        let response = match timeout(self.stall_timeout, request.send()).await {
            Err(_) => return Err(self.stalled(offset)),
            Ok(Err(error)) => return self.unreachable(error),
            Ok(Ok(response)) => response,
        };
        match response.status() {
            StatusCode::PARTIAL_CONTENT if offset > 0 && range_start(response.headers()) == Some(offset) => {
                progress.set_total(response.content_length().map(|rest| offset + rest));
                self.receive(response, partial, progress, offset).await
            }
            StatusCode::OK => {
                progress.set_total(response.content_length());
                let etag = text(response.headers(), ETAG).filter(|etag| !etag.starts_with("W/")).unwrap_or_default();
                let validator = Validator { url: self.shown_url(), etag };
                partial.discard().await.map_err(|source| self.disk(source))?;
                partial.set_validator(Some(&validator)).await.map_err(|source| self.disk(source))?;
                self.receive(response, partial, progress, 0).await
            }
            // Nothing is left to send (the whole file is there), or the ranges do not fit: the digest decides.
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT if offset > 0 => {
                Ok(Attempt::Whole { resumed: true })
            }
            status
                if status.is_server_error()
                    || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) =>
            {
                let retry_after = text(response.headers(), RETRY_AFTER).and_then(|seconds| seconds.parse().ok());
                Ok(Attempt::Broken {
                    cause: format!("{} answered {status}", self.shown_url()),
                    retry_after: retry_after.map(Duration::from_secs),
                })
            }
            status => Err(Error::Refused {
                url: self.shown_url(),
                status,
                hint: match status {
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                        "give a valid token: spec.model.credentialsRef names a Secret with the key token"
                    }
                    _ => "check spec.model.source.http.url",
                },
            }),
        }
    }

    /// Writes the body behind what is there.
    async fn receive(
        &self,
        response: Response,
        partial: &Partial,
        progress: &Progress,
        offset: u64,
    ) -> Result<Attempt, Error> {
        let disk = |source| self.disk(source);
        let file = tokio::fs::File::options().create(true).append(true).open(&partial.data).await.map_err(disk)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let mut length = offset;
        let mut body = response.bytes_stream();
        let end = loop {
            match timeout(self.stall_timeout, body.next()).await {
                Err(_) => break Err(self.stalled(length)),
                Ok(None) => break Ok(Attempt::Whole { resumed: offset > 0 }),
                Ok(Some(Err(error))) => break self.unreachable(error),
                Ok(Some(Ok(chunk))) => {
                    file.write_all(&chunk).await.map_err(disk)?;
                    length += chunk.len() as u64;
                    progress.set_bytes(length);
                }
            }
        };
        // Also what a broken attempt brought is kept: the next one resumes behind it.
        file.flush().await.map_err(disk)?;
        file.get_ref().sync_all().await.map_err(disk)?;
        end
    }

    fn client(&self) -> Result<Client, Error> {
        Client::builder()
            .redirect(reqwest::redirect::Policy::limited(MAX_REDIRECTS))
            .referer(false)
            .user_agent(concat!("llmops/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::Failed { url: self.shown_url(), cause: causes(error) })
    }

    fn unreachable(&self, error: reqwest::Error) -> Result<Attempt, Error> {
        if error.is_redirect() || error.is_builder() {
            return Err(Error::Failed { url: self.shown_url(), cause: causes(error) });
        }
        Ok(Attempt::Broken { cause: causes(error), retry_after: None })
    }

    fn stalled(&self, bytes: u64) -> Error {
        Error::Stalled { url: self.shown_url(), after: self.stall_timeout, bytes }
    }

    fn disk(&self, source: io::Error) -> Error {
        Error::Disk { path: self.out.clone(), source }
    }

    fn matches(&self, hasher: Sha256) -> bool {
        hex::encode(hasher.finalize()) == self.sha256
    }

    /// The address without query, user and password: signed addresses carry secrets there.
    fn shown_url(&self) -> String {
        let Ok(mut url) = reqwest::Url::parse(&self.url) else { return "the address".into() };
        url.set_query(None);
        url.set_fragment(None);
        // Both fail only for addresses that cannot have them.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.into()
    }
}

async fn length_of(partial: &Partial) -> u64 {
    tokio::fs::metadata(&partial.data).await.map_or(0, |metadata| metadata.len())
}

/// First byte that a 206 answer carries.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    text(headers, CONTENT_RANGE)?.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// The error with its causes, which reqwest hides, and without the address, which may carry secrets.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
