//! What the deny list has to do with a flow: whoever is on it is nowhere announced, and that alone would not say why.

use handfast_ca::NodeName;
use handfast_ca::model::{Serial, Subject};

use super::super::agent::Agent;
use super::here::Checks;
use crate::core::{Identity, PeerNumber};

/// Names that are told where any of them may be meant.
const NAMED: usize = 3;

impl Agent {
    /// The end on this node: its identity, and the certificate that it would be proven by.
    pub(super) fn check_revoked(&self, local: &Identity, checks: &mut Checks) {
        let deny = self.verifier.deny_list();
        let mut subjects = Vec::new();
        subjects.extend(local.spiffe_id.parse().ok().map(Subject::SpiffeId));
        let mut svids = self.svids.proofs().values();
        let svid = svids.find(|svid| svid.identity == *local);
        let serial = svid.map(|svid| data_encoding::HEXLOWER.encode(&svid.serial));
        let serial = serial.and_then(|serial| serial.parse::<Serial>().ok());
        subjects.extend(serial.map(Subject::Serial));
        for subject in subjects.iter().filter(|subject| deny.denies(subject)) {
            let detail = format!("{subject} is revoked: deny list {}", deny.number());
            checks.holds("revocation", false, detail);
        }
    }

    /// The node that an end is on. Tells whether it is.
    pub(super) fn check_revoked_node(&self, peer: PeerNumber, checks: &mut Checks) -> bool {
        let view = self.view();
        let mut peers = view.peers.iter();
        let name = peers.find(|known| known.number == peer);
        let name = name.and_then(|peer| peer.name.parse::<NodeName>().ok());
        let deny = self.verifier.deny_list();
        let denied = name.map(Subject::Node).filter(|node| deny.denies(node));
        if let Some(node) = &denied {
            let detail = format!("{node} is revoked: deny list {}", deny.number());
            checks.holds("revocation", false, detail);
        }
        denied.is_some()
    }

    /// The end that is called this, or what it may be if that is all that is known of it.
    pub(super) fn check_revoked_named(&self, name: &str, resolved: bool, checks: &mut Checks) {
        let deny = self.verifier.deny_list();
        let means = |subject: &&Subject| match subject {
            Subject::SpiffeId(id) => {
                id.to_string() == name || id.path().rsplit('/').next() == Some(name)
            }
            Subject::Node(node) => node.to_string() == name,
            Subject::Serial(_) => false,
        };
        let subjects = || deny.denials().iter().map(|denial| &denial.subject);
        if let Some(subject) = subjects().find(means) {
            let detail = format!("{subject} is revoked: deny list {}", deny.number());
            checks.holds("revocation", false, detail);
        } else if !resolved && let Some(detail) = listed(subjects(), deny.denials().len()) {
            let detail = format!("deny list {} has {detail}", deny.number());
            checks.holds("revocation", true, detail);
        }
    }
}

/// A few of many.
fn listed<'a>(subjects: impl Iterator<Item = &'a Subject>, count: usize) -> Option<String> {
    let named: Vec<String> = subjects.take(NAMED).map(ToString::to_string).collect();
    if named.is_empty() {
        return None;
    }
    let more = match count.saturating_sub(named.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("{}{more}", named.join(", ")))
}
