//! k8s_psat on the node's side: the token that the kubelet keeps fresh in a file of the agent's pod.

use std::path::PathBuf;

use prost::Message;
use spiffe::TrustDomain;

use super::Attestation;
use crate::kubernetes::{K8S_PSAT, MAX_TOKEN};
use crate::{Error, proto};

/// Where the token is. It is read at each attestation, since the kubelet replaces it.
#[derive(Debug, Clone)]
pub struct K8sPsat {
    /// The file.
    pub token: PathBuf,
    /// The node that this agent believes to be on; none for whatever the token says.
    pub node: Option<String>,
}

impl Attestation for K8sPsat {
    fn kind(&self) -> &str {
        K8S_PSAT
    }

    fn claim(&self) -> Result<Vec<u8>, Error> {
        let text =
            std::fs::read_to_string(&self.token).map_err(Error::io("cannot read", &self.token))?;
        let token = text.trim();
        if token.is_empty() || token.len() > MAX_TOKEN || token.chars().any(char::is_whitespace) {
            return Err(Error::invalid(
                self.token.display().to_string(),
                "it holds no service account token",
            ));
        }
        let claim = proto::K8sPsatClaim {
            token: token.to_owned(),
            node: self.node.clone().unwrap_or_default(),
        };
        Ok(claim.encode_to_vec())
    }

    fn answer(&self, _: &TrustDomain, _: &[u8], _: &[u8; 32]) -> Result<Vec<u8>, Error> {
        Err(Error::Protocol(format!("a challenge in {K8S_PSAT}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_read_anew_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        let by = K8sPsat {
            token: token.clone(),
            node: Some("n1".to_owned()),
        };
        assert!(by.claim().is_err());
        for text in ["first", "second"] {
            std::fs::write(&token, format!("{text}\n")).unwrap();
            let claim = proto::K8sPsatClaim::decode(by.claim().unwrap().as_slice()).unwrap();
            assert_eq!((claim.token.as_str(), claim.node.as_str()), (text, "n1"));
        }
        std::fs::write(&token, "two words").unwrap();
        assert!(by.claim().is_err());
    }
}
