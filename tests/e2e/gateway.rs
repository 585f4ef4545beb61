//! A client of the gateway, as a user's application would be one.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

#[derive(Clone)]
pub struct Gateway {
    pub url: String,
    key: String,
    client: reqwest::Client,
}

impl Gateway {
    pub fn new(url: &str, key: &str) -> Self {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(120)).build().expect("an HTTP client");
        Self { url: url.to_owned(), key: key.to_owned(), client }
    }

    /// A request with the API key.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    /// The API key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A request without one.
    pub fn anonymous(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let response = self.request(reqwest::Method::POST, path).json(body).send().await?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("POST {path}: {status}: {text}");
        }
        serde_json::from_str(&text).with_context(|| format!("POST {path}: not JSON: {text}"))
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        let response = self.request(reqwest::Method::GET, path).send().await?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("GET {path}: {status}: {text}");
        }
        serde_json::from_str(&text).with_context(|| format!("GET {path}: not JSON: {text}"))
    }

    /// Asks a flow as a user.
    pub async fn ask(&self, flow: &str, question: &str, user: &str) -> Result<Value> {
        self.post(&format!("/v1/flows/{flow}"), &json!({"inputs": {"question": question}, "user": user})).await
    }
}
