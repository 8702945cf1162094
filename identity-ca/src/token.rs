//! Join tokens: the file that an operator carries to a node.
//!
//! It names the CA's root by fingerprint, so that the node knows whom it
//! talks to before it says the secret. The CA keeps only the secret's hash.

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use spiffe::TrustDomain;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::bundle::{Fingerprint, sha256};
use crate::model::TokenId;
use crate::{Error, NodeName};

const MAX_FILE: usize = 16 << 10;
const VERSION: u32 = 1;
const PREFIX: &str = "hfjoin1_";

/// Everything that a node needs to join.
#[derive(Debug, Clone)]
pub struct JoinToken {
    /// The trust domain that is joined.
    pub trust_domain: TrustDomain,
    /// The node that the token is for.
    pub node: NodeName,
    /// `HOST:PORT` of the CA.
    pub ca_address: String,
    /// Of the CA's root certificate.
    pub root_fingerprint: Fingerprint,
    /// The secret.
    pub secret: Secret,
    /// Unix milliseconds.
    pub expires_at_ms: u64,
}

impl JoinToken {
    /// Reads a token file's text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = |problem: String| {
            Error::invalid(
                "join token file",
                format!("{problem}; make a new one with `handfast token create`"),
            )
        };
        if text.len() > MAX_FILE {
            return Err(bad("it is too long".to_owned()));
        }
        let file: Written =
            serde_json::from_str(text).map_err(|error| bad(format!("it is not one ({error})")))?;
        if file.handfast_join_token != VERSION {
            return Err(bad(format!(
                "version {} is not known here",
                file.handfast_join_token
            )));
        }
        Ok(Self {
            trust_domain: TrustDomain::new(&file.trust_domain)
                .map_err(|error| bad(format!("trust domain: {error}")))?,
            node: file.node.parse()?,
            ca_address: file.ca_address.clone(),
            root_fingerprint: file.root_fingerprint.parse()?,
            secret: Secret(file.secret.clone()),
            expires_at_ms: file.expires_at_ms,
        })
    }

    /// Reads a token file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::parse(&fs::read_to_string(path).map_err(Error::io("cannot read", path))?)
    }

    /// The file's text.
    pub fn to_text(&self) -> Result<zeroize::Zeroizing<String>, Error> {
        let file = Written {
            handfast_join_token: VERSION,
            trust_domain: self.trust_domain.as_str().to_owned(),
            node: self.node.to_string(),
            ca_address: self.ca_address.clone(),
            root_fingerprint: self.root_fingerprint.to_string(),
            secret: self.secret.0.clone(),
            expires_at_ms: self.expires_at_ms,
        };
        serde_json::to_string_pretty(&file)
            .map(|text| zeroize::Zeroizing::new(text + "\n"))
            .map_err(|error| Error::invalid("join token", error.to_string()))
    }

    /// Writes a file, readable by its owner only. An existing one is not
    /// overwritten.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        TokenFile::create(path)?.write(self)
    }
}

/// The file of a token that is still to be made: empty, readable by its owner
/// only, and gone again unless it is written.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    file: fs::File,
    written: bool,
}

impl TokenFile {
    /// Makes it. An existing one is not overwritten.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::io("no token was made: cannot create", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            written: false,
        })
    }

    /// Writes the token into it. Half a token is of no use to anybody, and
    /// does not stay.
    pub fn write(mut self, token: &JoinToken) -> Result<(), Error> {
        let text = token.to_text()?;
        let written = self
            .file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_all());
        written.map_err(Error::io("cannot write", &self.path))?;
        self.written = true;
        Ok(())
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        if !self.written {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The secret of a token: 256 random bits. Does not show itself.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

impl Secret {
    pub(crate) fn random() -> Self {
        let bytes: [u8; 32] = rand::random();
        Self(format!(
            "{PREFIX}{}",
            data_encoding::BASE64URL_NOPAD.encode(&bytes)
        ))
    }

    pub(crate) fn from_wire(text: String) -> Self {
        Self(text)
    }

    /// As it goes over the wire.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What the CA stores. 256 random bits need no slow hash.
    pub(crate) fn hash(&self) -> [u8; 32] {
        sha256(self.0.as_bytes())
    }

    /// What the token is called by.
    pub fn id(&self) -> TokenId {
        TokenId::of(&self.hash())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Written {
    handfast_join_token: u32,
    trust_domain: String,
    node: String,
    ca_address: String,
    root_fingerprint: String,
    secret: String,
    expires_at_ms: u64,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            trust_domain: TrustDomain::new("example.org").unwrap(),
            node: "web1".parse().unwrap(),
            ca_address: "192.0.2.1:7251".to_owned(),
            root_fingerprint: Fingerprint::of(b"root"),
            secret: Secret::random(),
            expires_at_ms: 1,
        }
    }

    #[test]
    fn a_token_file_is_private_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web1.join");
        let token = token();
        token.write(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let read = JoinToken::read(&path).unwrap();
        assert_eq!(
            (read.node, read.secret),
            (token.node.clone(), token.secret.clone())
        );
        assert!(
            token.write(&path).is_err(),
            "an existing file is not overwritten"
        );
    }

    #[test]
    fn a_file_for_a_token_that_is_not_made_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web1.join");
        drop(TokenFile::create(&path).unwrap());
        assert!(!path.exists());
        let nowhere = TokenFile::create(&folder.path().join("no/web1.join"));
        let error = nowhere.unwrap_err().to_string();
        assert!(error.contains("no token was made"), "{error}");
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        let token = token();
        assert!(!format!("{token:?}").contains(token.secret.expose()));
    }

    #[test]
    fn garbage_is_not_a_token() {
        for bad in ["", "{}", "[1]", "{\"handfast_join_token\": 2}"] {
            assert!(JoinToken::parse(bad).is_err(), "{bad}");
        }
    }
}
