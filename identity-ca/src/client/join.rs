//! A node's first certificate, for a join token.

use spiffe::TrustDomain;

use super::connect::{Trust, bounded, connect};
use super::{NodeIdentity, Svid, refused};
use crate::bundle::TrustBundle;
use crate::certificate::PrivateKey;
use crate::deny::DenyList;
use crate::token::JoinToken;
use crate::verify::{NodeSvid, Verifier};
use crate::{Error, now_ms, proto};

/// What a node has after it has joined: all that it needs to connect again.
#[derive(Debug)]
pub struct Joined {
    /// Its key and chain.
    pub identity: NodeIdentity,
    /// What the certificate says, verified.
    pub node: NodeSvid,
    /// The roots.
    pub bundle: TrustBundle,
    /// The CA's clock (unix milliseconds).
    pub ca_time_ms: u64,
}

/// Spends a join token: a key is made here, its CSR goes to the CA, whose
/// root is recognised by the fingerprint in the token before the secret is
/// said. Nothing is spent when clocks differ or the CA is not the right one.
pub async fn join(token: &JoinToken) -> Result<Joined, Error> {
    let trust = Trust::Root(token.trust_domain.clone(), token.root_fingerprint);
    let mut client = connect(&token.ca_address, &trust, None).await?;
    let key = PrivateKey::generate()?;
    let request = proto::JoinRequest {
        token: token.secret.expose().to_owned(),
        csr: key.csr()?,
        now_ms: now_ms(),
    };
    let reply = client
        .join(bounded(request))
        .await
        .map_err(refused)?
        .into_inner();
    let joined = joined(reply, &token.trust_domain, key)?;
    if joined.node.name != token.node {
        return Err(Error::Protocol(format!(
            "the CA gave us the name {}",
            joined.node.name
        )));
    }
    Ok(joined)
}

/// Reads what the CA gives a node that it lets in. The connection has shown
/// already that it is the right CA: its bundle counts, even where the root
/// that it was recognised by has been superseded since.
pub(super) fn joined(
    reply: proto::JoinReply,
    trust_domain: &TrustDomain,
    key: PrivateKey,
) -> Result<Joined, Error> {
    let missing = |what: &str| Error::Protocol(format!("the CA's answer has no {what}"));
    let bundle: TrustBundle = reply.bundle.ok_or_else(|| missing("bundle"))?.try_into()?;
    if bundle.trust_domain() != trust_domain {
        return Err(Error::Protocol(
            "the CA's bundle is of another trust domain".to_owned(),
        ));
    }
    let svid = Svid::try_from(reply.svid.ok_or_else(|| missing("certificate"))?)?;
    let node = Verifier::new(bundle.clone(), DenyList::empty()).node(&svid.chain, crate::now())?;
    Ok(Joined {
        identity: NodeIdentity {
            chain: svid.chain,
            key,
        },
        node,
        bundle,
        ca_time_ms: reply.now_ms,
    })
}
