//! API keys, from labelled Secrets. Only their SHA-256 is known here.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Secret;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// What an API key opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// SHA-256 of the key.
    pub digest: [u8; 32],
    /// Name for logs and records.
    pub name: String,
    /// The namespaces that it opens.
    pub scope: Scope,
}

/// Namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every namespace.
    All,
    /// These.
    Some(BTreeSet<String>),
}

impl Scope {
    /// Whether a namespace is one of them.
    pub fn opens(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Some(namespaces) => namespaces.contains(namespace),
        }
    }
}

/// The keys.
#[derive(Clone, Debug, Default)]
pub struct KeyTable {
    keys: Vec<ApiKey>,
}

impl KeyTable {
    /// A table of these keys.
    pub fn new(keys: Vec<ApiKey>) -> Self {
        Self { keys }
    }

    /// The key with this SHA-256. Every key is compared, in constant time, whatever the result.
    pub fn find(&self, digest: &[u8; 32]) -> Option<&ApiKey> {
        let mut found = Choice::from(0);
        let mut place = 0_u64;
        for (index, key) in (0_u64..).zip(&self.keys) {
            let same = key.digest.ct_eq(digest);
            place.conditional_assign(&index, same);
            found |= same;
        }
        if bool::from(found) { self.keys.get(usize::try_from(place).ok()?) } else { None }
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none, so that only Kubernetes tokens are accepted.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// The key that a Secret holds. A Secret opens its own namespace; one in the gateway's namespace opens those that it
/// lists in `namespaces`, or all with `*`.
pub(super) fn read(secret: &Secret, own_namespace: &str) -> Result<ApiKey, String> {
    let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
    let text = |key: &str| {
        let bytes = &secret.data.as_ref()?.get(key)?.0;
        Some(String::from_utf8_lossy(bytes).trim().to_owned())
    };
    let digest = text("sha256").ok_or("data.sha256 is missing: it holds the SHA-256 of the key, 64 hex characters")?;
    let digest = hex::decode(digest)
        .ok()
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .ok_or("data.sha256 is not 64 hex characters: set it to the SHA-256 of the key")?;
    let listed = text("namespaces").filter(|_| namespace == own_namespace);
    let scope = match listed.as_deref() {
        Some("*") => Scope::All,
        Some(list) => {
            Scope::Some(list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
        }
        None => Scope::Some(BTreeSet::from([namespace.to_owned()])),
    };
    let name = text("name").unwrap_or_else(|| secret.metadata.name.clone().unwrap_or_default());
    Ok(ApiKey { digest, name: format!("{namespace}/{name}"), scope })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use sha2::{Digest, Sha256};

    fn secret(namespace: &str, data: &[(&str, &str)]) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.namespace = Some(namespace.into());
        secret.metadata.name = Some("key".into());
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        secret.data = Some(data.collect());
        secret
    }

    #[test]
    fn a_secret_opens_its_own_namespace_and_in_the_gateways_what_it_lists() {
        let hash = hex::encode(Sha256::digest("llmops_x"));
        let of = |namespace, namespaces: Option<&str>| {
            let mut data = vec![("sha256", hash.as_str())];
            data.extend(namespaces.map(|list| ("namespaces", list)));
            read(&secret(namespace, &data), "llmops-system").unwrap().scope
        };
        assert!(of("a", None).opens("a") && !of("a", None).opens("b"));
        assert!(!of("a", Some("*")).opens("b"), "only the gateway's namespace may open others");
        assert_eq!(of("llmops-system", Some("*")), Scope::All);
        let list = of("llmops-system", Some("a, b"));
        assert!(list.opens("a") && list.opens("b") && !list.opens("llmops-system"));
    }

    #[test]
    fn a_broken_secret_says_what_to_do() {
        assert!(read(&secret("a", &[]), "s").unwrap_err().contains("data.sha256 is missing"));
        assert!(read(&secret("a", &[("sha256", "abc")]), "s").unwrap_err().contains("64 hex"));
    }

    #[test]
    fn finds_the_key_of_a_digest_and_no_other() {
        let key = |byte: u8| ApiKey { digest: [byte; 32], name: byte.to_string(), scope: Scope::All };
        let table = KeyTable::new(vec![key(1), key(2), key(3)]);
        assert_eq!(table.find(&[2; 32]), Some(&key(2)));
        assert_eq!(table.find(&[4; 32]), None);
        assert_eq!(KeyTable::default().find(&[0; 32]), None);
    }
}
