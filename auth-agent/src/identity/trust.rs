//! What this node judges by, trust bundle and deny list, kept together in one file: they never come from two moments,
//! whenever the machine stops. A list is verified by its bundle when it is read back; one of an earlier bundle might
//! not be believed any more, or a bundle be there without what was revoked under it.

use std::fs;

use data_encoding::BASE64;
use handfast_ca::bundle::TrustBundle;
use handfast_ca::deny::DenyList;
use handfast_ca::verify::Verifier;
use serde::{Deserialize, Serialize};

use super::{IdentityError, NodeStore};
use crate::files;

const TRUST: &str = "trust.json";
/// Where earlier versions kept the two, read as long as there is nothing newer.
const BUNDLE: &str = "bundle";
const DENY_LIST: &str = "deny-list";

/// Both as they came, in Base64.
#[derive(Serialize, Deserialize)]
struct TrustFile {
    bundle: String,
    /// None: none was ever heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deny_list: Option<String>,
}

/// The bytes of both.
struct Stored {
    bundle: Vec<u8>,
    /// None: none was ever heard.
    deny: Option<Vec<u8>>,
}

impl NodeStore {
    /// Keeps bundle and deny list; done before either is acknowledged.
    pub fn save_trust(&self, trust: &Verifier) -> Result<(), IdentityError> {
        let deny = Some(trust.deny_list().bytes()).filter(|bytes| !bytes.is_empty());
        let file = TrustFile {
            bundle: BASE64.encode(&trust.bundle().to_bytes()),
            deny_list: deny.map(|bytes| BASE64.encode(bytes)),
        };
        files::write_json(&self.path(TRUST), &file)?;
        // From here on nobody reads these.
        for old in [DENY_LIST, BUNDLE] {
            let path = self.path(old);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "an outdated file is not removed");
            }
        }
        Ok(())
    }

    /// Keeps the bundle that joining gave. What was revoked before stays revoked, unless the CA is another one.
    pub(super) fn save_joined_trust(&self, bundle: TrustBundle) -> Result<(), IdentityError> {
        let kept = self.stored()?.and_then(|stored| stored.deny);
        let deny = kept.and_then(|bytes| DenyList::from_bytes(&bytes, &bundle).ok());
        self.save_trust(&Verifier::new(bundle, deny.unwrap_or_default()))
    }

    /// What this node judges by.
    pub fn trust(&self) -> Result<Verifier, IdentityError> {
        let stored = self.stored()?.ok_or_else(|| IdentityError::Damaged {
            path: self.path(TRUST),
            problem: "it is missing".into(),
        })?;
        let bundle = TrustBundle::from_bytes(&stored.bundle)?;
        let deny = match stored.deny {
            Some(bytes) => DenyList::from_bytes(&bytes, &bundle)?,
            None => DenyList::empty(),
        };
        Ok(Verifier::new(bundle, deny))
    }

    /// What is there, in either layout.
    fn stored(&self) -> Result<Option<Stored>, IdentityError> {
        let path = self.path(TRUST);
        if let Some(file) = files::read_json::<TrustFile>(&path)? {
            let decoded = |text: &str| {
                let damaged = |error: data_encoding::DecodeError| IdentityError::Damaged {
                    path: path.clone(),
                    problem: error.to_string(),
                };
                BASE64.decode(text.as_bytes()).map_err(damaged)
            };
            let deny = file.deny_list.as_deref().map(decoded).transpose()?;
            let bundle = decoded(&file.bundle)?;
            return Ok(Some(Stored { bundle, deny }));
        }
        let Some(bundle) = files::read(&self.path(BUNDLE))? else {
            return Ok(None);
        };
        let deny = files::read(&self.path(DENY_LIST))?;
        Ok(Some(Stored { bundle, deny }))
    }
}
