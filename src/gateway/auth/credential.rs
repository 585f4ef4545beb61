//! Reading credentials from headers. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};

use crate::gateway::error::ApiError;

/// What API keys start with.
const KEY_PREFIX: &str = "llmops_";
/// Longest credential, in bytes.
const MAX_CREDENTIAL: usize = 16 * 1024;

/// What a request shows.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// SHA-256 of an API key.
    Key([u8; 32]),
    /// A token of Kubernetes.
    Token(String),
}

/// Reads `Authorization: Bearer KEY-OR-TOKEN`, or `Basic` with it as the password.
pub(super) fn read(headers: &HeaderMap) -> Result<Credential, ApiError> {
    let header = headers
        .get(AUTHORIZATION)
        .ok_or_else(|| ApiError::unauthenticated("a credential is required: send `Authorization: Bearer KEY`"))?;
    let wrong = || {
        ApiError::unauthenticated(
            "cannot read the Authorization header: send `Bearer KEY`, or `Basic` with the key as password",
        )
    };
    let text = header.to_str().map_err(|_| wrong())?;
    let (scheme, rest) = text.split_once(' ').ok_or_else(wrong)?;
    let secret = if scheme.eq_ignore_ascii_case("bearer") {
        rest.trim().to_owned()
    } else if scheme.eq_ignore_ascii_case("basic") {
        let pair =
            STANDARD.decode(rest.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(wrong)?;
        pair.split_once(':').ok_or_else(wrong)?.1.to_owned()
    } else {
        return Err(wrong());
    };
    if secret.is_empty() || secret.len() > MAX_CREDENTIAL {
        return Err(wrong());
    }
    if secret.starts_with(KEY_PREFIX) {
        return Ok(Credential::Key(Sha256::digest(secret.as_bytes()).into()));
    }
    // Only what looks like a signed token is worth a question to the API server.
    let parts = secret.split('.').count();
    let signed = secret.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.=".contains(&byte));
    if signed && parts == 3 {
        Ok(Credential::Token(secret))
    } else {
        Err(ApiError::unauthenticated(format!(
            "the credential is neither an API key (they start with {KEY_PREFIX}) nor a Kubernetes token"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(header: &str) -> Result<Credential, ApiError> {
        read(&HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(header).unwrap())]))
    }

    #[test]
    fn bearer_and_basic_carry_the_same_key() {
        let key = Credential::Key(Sha256::digest("llmops_abc").into());
        assert!(of("Bearer llmops_abc").unwrap() == key);
        assert!(of("bearer  llmops_abc").unwrap() == key);
        assert!(of(&format!("Basic {}", STANDARD.encode("anyone:llmops_abc"))).unwrap() == key);
        assert!(of("Bearer aaa.bbb.c-_").unwrap() == Credential::Token("aaa.bbb.c-_".into()));
    }

    #[test]
    fn everything_else_is_refused() {
        assert!(read(&HeaderMap::new()).is_err());
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer sk-123",
            "Digest x",
            "Basic !",
            "Basic YQ==",
            "Bearer a.b",
            "Bearer a.b.c d",
        ] {
            assert_eq!(of(wrong).err().unwrap().status, http::StatusCode::UNAUTHORIZED, "{wrong}");
        }
    }
}
