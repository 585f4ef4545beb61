//! Turns views into pages.

use std::fmt::Write;
use std::sync::LazyLock;

use axum::response::{Html, IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, StatusCode};
use minijinja::value::Serde;
use minijinja::{Environment, HtmlEscape, UndefinedBehavior, Value, context};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::view::Moment;

const STYLE: &str = include_str!("templates/style.css");
const TEMPLATES: [(&str, &str); 9] = [
    ("base.html", include_str!("templates/base.html")),
    ("macros.html", include_str!("templates/macros.html")),
    ("plot.html", include_str!("templates/plot.html")),
    ("overview.html", include_str!("templates/overview.html")),
    ("flow.html", include_str!("templates/flow.html")),
    ("model.html", include_str!("templates/model.html")),
    ("index.html", include_str!("templates/index.html")),
    ("evaluation.html", include_str!("templates/evaluation.html")),
    ("error.html", include_str!("templates/error.html")),
];

/// The templates, or why they cannot be used; a test proves that they can.
static ENVIRONMENT: LazyLock<Result<Environment<'static>, minijinja::Error>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("prose", prose);
    // A name's ending switches on the escaping of HTML.
    for (name, source) in TEMPLATES {
        environment.add_template(name, source)?;
    }
    Ok(environment)
});

/// Nothing runs, nothing is fetched, and only our own style applies; reports of this server may be shown in a frame.
static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; img-src data:; frame-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).ok()
});

/// What surrounds a page.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Chrome {
    pub title: String,
    /// Where the page lies, from the first page on.
    pub crumbs: Vec<Crumb>,
    /// Name of whoever asks.
    pub who: String,
    pub now: Moment,
    /// Seconds after which the browser loads the page anew.
    pub refresh: Option<u32>,
    /// Path of this page, with and without loading anew.
    pub live: String,
    pub still: String,
    /// The only namespace that is shown.
    pub filter: Option<String>,
}

/// A place on the way to a page.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Crumb {
    pub text: String,
    /// Absent for the page itself.
    pub path: Option<String>,
}

/// Words of an object for people: escaped, and what stands between backticks is code.
fn prose(text: &str) -> Value {
    let parts: Vec<&str> = text.split('`').collect();
    let paired = parts.len() % 2 == 1;
    let mut html = String::new();
    for (place, part) in parts.iter().enumerate() {
        let escaped = HtmlEscape(part);
        // Writing to a string does not fail.
        let _ = match (place % 2 == 1, paired) {
            (true, true) => write!(html, "<code>{escaped}</code>"),
            (_, false) if place > 0 => write!(html, "`{escaped}"),
            _ => write!(html, "{escaped}"),
        };
    }
    Value::from_safe_string(html)
}

/// Renders a page.
///
/// # Errors
/// Never for the views of this program: templates are part of it and tested.
pub(super) fn html(template: &str, chrome: &Chrome, page: impl Serialize) -> Result<String, String> {
    let environment = ENVIRONMENT.as_ref().map_err(|error| format!("{error:#}"))?;
    let style = Value::from_safe_string(STYLE.to_owned());
    let chrome = context! { style, ..Value::from(Serde(chrome)) };
    environment
        .get_template(template)
        .and_then(|template| template.render(context! { chrome, page => Value::from(Serde(page)) }))
        .map_err(|error| format!("{error:#}"))
}

/// The response with a page.
pub(super) fn response(status: StatusCode, page: String) -> Response {
    let headers: [(HeaderName, HeaderValue); 3] = [
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    let mut response = (status, headers, Html(page)).into_response();
    let policy = POLICY.clone().unwrap_or(HeaderValue::from_static("default-src 'none'"));
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_escaped_inside_and_outside_of_code() {
        let shown = |text: &str| prose(text).to_string();
        assert_eq!(shown("run `llmops promote <x>` & wait"), "run <code>llmops promote &lt;x&gt;</code> &amp; wait");
        assert_eq!(shown("`<b>` or `<i>`"), "<code>&lt;b&gt;</code> or <code>&lt;i&gt;</code>");
        assert_eq!(shown("a lone ` and <b>"), "a lone ` and &lt;b&gt;");
        assert_eq!(shown(""), "");
    }
}
