//! `llmops key`: makes API keys for the gateway.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::ExitCode;

use base64_url::encode;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest, Sha256};

use crate::api::names::LABEL_API_KEY;

/// Random bytes of a key: 256 bits, written as 43 characters.
const KEY_BYTES: usize = 32;

/// Arguments of `llmops key`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `llmops key`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Make a key: prints a Secret to apply on standard output and the key, once, on standard error.
    New(New),
}

/// Arguments of `llmops key new`.
#[derive(clap::Args, Debug)]
pub struct New {
    /// Name of the Secret and of the key in reports and limits.
    pub name: String,
    /// Namespace of the Secret. The key opens this namespace, and no other unless --namespaces says so.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Namespaces that the key opens, or `*` for all. Only a Secret in the gateway's own namespace may say this.
    #[arg(long, value_name = "A,B|*", value_delimiter = ',')]
    pub namespaces: Vec<String>,
}

/// An error of `llmops key`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that Kubernetes does not accept.
    #[error(
        "{field} \"{value}\" must have 1 to 63 characters, only a-z, 0-9 and '-', and begin and end with a letter or digit"
    )]
    Name {
        /// Which argument.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// The system gives no random bytes.
    #[error("cannot read random bytes from /dev/urandom: {0}")]
    Random(std::io::Error),
    /// The Secret cannot be written as YAML.
    #[error("cannot write the Secret as YAML: {0}")]
    Yaml(#[from] serde_yaml::Error),
}

/// A key and the Secret that makes the gateway accept it. The Secret holds only the key's hash.
#[derive(Debug)]
pub struct NewKey {
    /// The key; it cannot be had again from the Secret.
    pub key: String,
    /// The Secret to apply.
    pub secret: Secret,
}

/// The key of these random bytes, and its Secret.
///
/// # Errors
/// When a name is not one that Kubernetes accepts.
pub fn new_key(args: &New, random: &[u8; KEY_BYTES]) -> Result<NewKey, Error> {
    check_name("NAME", &args.name)?;
    check_name("--namespace", &args.namespace)?;
    for namespace in args.namespaces.iter().filter(|namespace| *namespace != "*") {
        check_name("--namespaces", namespace)?;
    }
    let key = format!("llmops_{}", encode(random));
    let mut data = BTreeMap::from([
        ("name".to_owned(), args.name.clone()),
        ("sha256".to_owned(), hex::encode(Sha256::digest(key.as_bytes()))),
    ]);
    if !args.namespaces.is_empty() {
        data.insert("namespaces".to_owned(), args.namespaces.join(","));
    }
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(args.name.clone()),
            namespace: Some(args.namespace.clone()),
            labels: Some(BTreeMap::from([(LABEL_API_KEY.to_owned(), "true".to_owned())])),
            ..ObjectMeta::default()
        },
        string_data: Some(data),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    Ok(NewKey { key, secret })
}

fn check_name(field: &'static str, value: &str) -> Result<(), Error> {
    let good = value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let ends = !value.starts_with('-') && !value.ends_with('-');
    if good && ends && (1..=63).contains(&value.len()) {
        Ok(())
    } else {
        Err(Error::Name { field, value: value.to_owned() })
    }
}

fn random() -> Result<[u8; KEY_BYTES], Error> {
    let mut bytes = [0; KEY_BYTES];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).map_err(Error::Random)?;
    Ok(bytes)
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let Command::New(new) = &args.command;
    let made = random().and_then(|bytes| new_key(new, &bytes)).and_then(|made| {
        let yaml = serde_yaml::to_string(&made.secret)?;
        Ok((made.key, yaml))
    });
    match made {
        Ok((key, yaml)) => {
            print!("{yaml}");
            eprintln!("# The key, shown only now; the Secret keeps its hash:\n{key}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Base 64 with the URL's alphabet and no padding (RFC 4648, section 5).
mod base64_url {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

    pub(super) fn encode(bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for chunk in bytes.chunks(3) {
            let group =
                chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for place in 0..=chunk.len() {
                let index = group >> (18 - 6 * place) & 63;
                text.push(char::from(*ALPHABET.get(index as usize).unwrap_or(&b'_')));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(name: &str, namespaces: &[&str]) -> New {
        New {
            name: name.into(),
            namespace: "team-a".into(),
            namespaces: namespaces.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn the_secret_holds_the_hash_and_never_the_key() {
        let made = new_key(&args("ci", &[]), &[7; KEY_BYTES]).unwrap();
        assert_eq!(made.key.len(), "llmops_".len() + 43);
        let yaml = serde_yaml::to_string(&made.secret).unwrap();
        assert!(!yaml.contains(&made.key));
        assert!(yaml.contains(&hex::encode(Sha256::digest(made.key.as_bytes()))));
        assert!(yaml.contains("llmops.dev/api-key"));
        assert!(!yaml.contains("namespaces"));
        assert_ne!(made.key, new_key(&args("ci", &[]), &[8; KEY_BYTES]).unwrap().key);
    }

    #[test]
    fn namespaces_are_listed_and_names_checked() {
        let made = new_key(&args("ci", &["a", "b"]), &[0; KEY_BYTES]).unwrap();
        assert_eq!(made.secret.string_data.unwrap()["namespaces"], "a,b");
        assert!(new_key(&args("ci", &["*"]), &[0; KEY_BYTES]).is_ok());
        for (name, namespaces) in [("CI", vec![]), ("", vec![]), ("-a", vec![]), ("a", vec!["b*"])] {
            assert!(new_key(&args(name, &namespaces), &[0; KEY_BYTES]).is_err(), "{name}");
        }
    }

    #[test]
    fn base64_of_known_texts() {
        for (text, expected) in
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("\u{ff}\u{3ff}", "w7_Pvw")]
        {
            assert_eq!(base64_url::encode(text.as_bytes()), expected);
        }
    }
}
