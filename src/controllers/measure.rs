//! What users' requests have shown, as the gateway measured it: the only thing that controllers ask of it.

use std::path::PathBuf;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::{Client, StatusCode};

use crate::experiment::measurements::Measurements;

/// Longest time for one answer: a rollout that cannot be measured waits, it does not block others.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read: a flow has few arms and strata.
const MAX_BYTES: usize = 4 << 20;
/// Characters of a refusal that are shown.
const SHOWN: usize = 200;

/// A source of measurements.
pub trait Measure: Send + Sync + 'static {
    /// Everything measured of an object of this namespace since a moment.
    fn measure<'a>(
        &'a self,
        namespace: &'a str,
        of: Of<'a>,
        since: jiff::Timestamp,
    ) -> BoxFuture<'a, Result<Measurements, MeasureError>>;
}

/// What is measured, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of<'a> {
    /// The arms of a flow.
    Flow(&'a str),
    /// The revisions of a model while its requests are split between them: of units that came since the moment.
    Model(&'a str),
}

/// What users' requests have shown, as far as it is needed.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Measured {
    /// Nothing that is needed now.
    #[default]
    Nothing,
    /// It could not be measured, and why.
    Failed(String),
    /// What was measured.
    Taken(Measurements),
}

impl From<Result<Measurements, MeasureError>> for Measured {
    fn from(found: Result<Measurements, MeasureError>) -> Self {
        found.map_or_else(|error| Self::Failed(error.to_string()), Self::Taken)
    }
}

/// Why there are no measurements.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// The gateway cannot be reached, or is too slow.
    #[error("the gateway does not answer at {url}: {cause}; look at its pods")]
    Unreachable {
        /// Where it was asked.
        url: String,
        /// What went wrong.
        cause: String,
    },
    /// The gateway says no.
    #[error("the gateway answers {status} to a request for measurements: {message}{}", help(*.status))]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// The answer is no list of measurements.
    #[error("the gateway's measurements cannot be read: {0}; controller and gateway must have the same version")]
    Unreadable(String),
    /// The token that names this process to the gateway cannot be read.
    #[error("the controller's token for the gateway cannot be read from {path} (--gateway-token-file): {cause}")]
    Token {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        cause: String,
    },
}

fn help(status: u16) -> &'static str {
    match status {
        401 | 403 => {
            "; the controller's ServiceAccount needs the verb `get` on `promptflows/measurements` and `modeldeployments/measurements` and a token of the gateway's audience"
        }
        404 => "; controller and gateway must have the same version",
        _ => "",
    }
}

/// The gateway, asked over HTTP.
#[derive(Clone, Debug)]
pub struct GatewayMeasurements {
    client: Client,
    /// Address of the gateway without a slash at its end.
    url: String,
    token_file: Option<PathBuf>,
}

impl GatewayMeasurements {
    /// A client of this gateway. The token is read for each request, because Kubernetes renews it; without a file the
    /// gateway is asked without one.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(url: &str, token_file: Option<PathBuf>) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .user_agent(concat!("llmops-controller/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, url: url.trim_end_matches('/').to_owned(), token_file })
    }

    async fn ask(&self, path: String, since: jiff::Timestamp) -> Result<Measurements, MeasureError> {
        let url = format!("{}/v1/measurements/{path}?since={since:.0}", self.url);
        let mut request = self.client.get(&url);
        if let Some(path) = &self.token_file {
            let token = tokio::fs::read_to_string(path)
                .await
                .map_err(|error| MeasureError::Token { path: path.clone(), cause: error.to_string() })?;
            request = request.bearer_auth(token.trim());
        }
        let unreachable =
            |error: reqwest::Error| MeasureError::Unreachable { url: self.url.clone(), cause: causes(&error) };
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(unreachable)? {
            body.extend_from_slice(&part);
            if body.len() > MAX_BYTES {
                return Err(MeasureError::Unreadable(format!("the answer has more than {MAX_BYTES} bytes")));
            }
        }
        if status != StatusCode::OK {
            let message = String::from_utf8_lossy(&body).chars().take(SHOWN).collect();
            return Err(MeasureError::Refused { status: status.as_u16(), message });
        }
        serde_json::from_slice(&body).map_err(|error| MeasureError::Unreadable(error.to_string()))
    }
}

impl Measure for GatewayMeasurements {
    fn measure<'a>(
        &'a self,
        namespace: &'a str,
        of: Of<'a>,
        since: jiff::Timestamp,
    ) -> BoxFuture<'a, Result<Measurements, MeasureError>> {
        let path = match of {
            Of::Flow(name) => format!("{namespace}/{name}"),
            Of::Model(name) => format!("{namespace}/models/{name}"),
        };
        self.ask(path, since).boxed()
    }
}

/// Measures nothing: tests of pure stages say themselves what was measured.
#[cfg(test)]
pub(crate) struct NoMeasurements;

#[cfg(test)]
impl Measure for NoMeasurements {
    fn measure<'a>(
        &'a self,
        _: &'a str,
        _: Of<'a>,
        _: jiff::Timestamp,
    ) -> BoxFuture<'a, Result<Measurements, MeasureError>> {
        std::future::ready(Ok(Measurements::default())).boxed()
    }
}

/// An error with its causes: reqwest's own text leaves them out. The address is left out, the caller names it.
fn causes(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "no answer in time".to_owned() } else { String::new() };
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    if text.is_empty() { "the connection failed".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::{Path, RawQuery};
    use axum::http::{HeaderMap, StatusCode as Code};
    use axum::routing::get;

    use super::*;

    async fn serve(app: Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        format!("http://{address}/")
    }

    fn at() -> jiff::Timestamp {
        "2026-11-24T09:00:00.25Z".parse().unwrap()
    }

    #[tokio::test]
    async fn asks_with_the_token_of_the_moment() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "secret\n").unwrap();
        let answer = |path: Path<(String, String)>, query: RawQuery, headers: HeaderMap| async move {
            assert_eq!((path.0.0.as_str(), path.0.1.as_str()), ("team-a", "faq"));
            assert_eq!(query.0.as_deref(), Some("since=2026-11-24T09:00:00Z"));
            assert_eq!(headers["authorization"], "Bearer secret");
            r#"{"arms":[{"stratum":"s","variant":"control","revision":"1","weight":100,"units":3,"requests":4,"metrics":[]}]}"#
        };
        let of_model = |path: Path<(String, String)>, headers: HeaderMap| async move {
            assert_eq!((path.0.0.as_str(), path.0.1.as_str()), ("team-a", "writer"));
            assert_eq!(headers["authorization"], "Bearer secret");
            r#"{"arms":[{"stratum":"s","variant":"writer","revision":"1","weight":80,"units":3,"requests":4,"metrics":[]}]}"#
        };
        let app = Router::new()
            .route("/v1/measurements/{namespace}/{flow}", get(answer))
            .route("/v1/measurements/{namespace}/models/{name}", get(of_model));
        let url = serve(app).await;
        let client = GatewayMeasurements::new(&url, Some(token.path().to_owned())).unwrap();
        let measured = client.measure("team-a", Of::Flow("faq"), at()).await.unwrap();
        assert_eq!((measured.arms[0].units, measured.arms[0].shadow), (3, false));
        let measured = client.measure("team-a", Of::Model("writer"), at()).await.unwrap();
        assert_eq!(measured.arms[0].variant, "writer");
    }

    #[tokio::test]
    async fn says_what_helps() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let app = Router::new()
            .route("/v1/measurements/a/forbidden", get(|| async { (Code::FORBIDDEN, "no permission") }))
            .route("/v1/measurements/a/odd", get(|| async { "[]" }));
        let url = serve(app).await;
        let client = GatewayMeasurements::new(&url, None).unwrap();
        let error = |flow: &'static str| {
            client.measure("a", Of::Flow(flow), at()).map(|answer| answer.unwrap_err().to_string())
        };
        assert!(error("forbidden").await.contains("`get` on `promptflows/measurements`"));
        assert!(error("odd").await.contains("must have the same version"));
        assert!(error("gone").await.contains("answers 404"));
        let nobody = GatewayMeasurements::new("http://127.0.0.1:9", None).unwrap();
        let error = nobody.measure("a", Of::Flow("b"), at()).await.unwrap_err();
        assert!(matches!(error, MeasureError::Unreachable { .. }), "{error}");
        let lost = GatewayMeasurements::new("http://127.0.0.1:9", Some("/nowhere/token".into())).unwrap();
        let error = lost.measure("a", Of::Flow("b"), at()).await.unwrap_err().to_string();
        assert!(error.contains("/nowhere/token (--gateway-token-file)"), "{error}");
    }
}
