//! Has the device be what it is to be, whatever somebody has done to it: a peer of theirs in it, a peer of ours gone
//! or with other prefixes, another key, port or mark.

use std::collections::BTreeMap;

use super::Inner;
use super::control::{Allowed, Change, PeerChange, PeerReading, Reading};
use super::options::Options;
use crate::prefixes::normal;
use crate::{Error, Peer, PrivateKey, PublicKey};

impl Inner {
    /// Puts right what is wrong, and says what that was.
    pub(super) async fn mend(&self) -> Result<Vec<String>, Error> {
        let state = self.state.lock().await;
        if state.detached {
            return Ok(Vec::new());
        }
        let reading = state.control.read().await?;
        let (change, mut found) = repairs(&self.options, &state.private_key, &state.peers, reading);
        if !found.is_empty() {
            state.control.apply(&change).await?;
        }
        let device = self.device();
        let link = self.netlink.link_at(device.index).await?;
        if let Some(link) = link.filter(|link| link.mtu != device.mtu) {
            found.push(format!(
                "its MTU was {}, and is {} again",
                link.mtu, device.mtu
            ));
            self.netlink
                .configure(device.index, device.mtu, super::device::ALIAS)
                .await?;
        }
        Ok(found)
    }
}

fn repairs(
    options: &Options,
    private_key: &PrivateKey,
    wanted: &BTreeMap<PublicKey, Peer>,
    reading: Reading,
) -> (Change, Vec<String>) {
    let mut change = Change::default();
    let mut found = Vec::new();
    let key = reading.private_key.map(|key| key.public_key());
    if key != Some(private_key.public_key()) {
        found.push("its static key was changed, and is ours again".to_owned());
        change.private_key = Some(private_key.clone());
    }
    if reading.port != options.port {
        let port = reading.port;
        found.push(format!(
            "its port was {port}, and is {} again",
            options.port
        ));
        change.port = Some(options.port);
    }
    if reading.fwmark != options.fwmark {
        found.push("its mark was changed, and is ours again".to_owned());
        change.fwmark = Some(options.fwmark);
    }
    let there: BTreeMap<PublicKey, PeerReading> = reading
        .peers
        .into_iter()
        .map(|peer| (peer.public_key, peer))
        .collect();
    for key in there.keys().filter(|key| !wanted.contains_key(key)) {
        found.push(format!(
            "peer {key}, which no session of ours made, is removed"
        ));
        change.peers.push(PeerChange::Remove(*key));
    }
    for (key, peer) in wanted {
        if there
            .get(key)
            .is_some_and(|there| is_as_wanted(there, peer))
        {
            continue;
        }
        found.push(format!(
            "peer {key} was removed or changed, and is ours again"
        ));
        change.peers.push(PeerChange::Set {
            peer: peer.clone(),
            keepalive: options.keepalive,
            allowed: Allowed::Replace,
        });
    }
    (change, found)
}

/// Where the peer is may change: it roams.
fn is_as_wanted(there: &PeerReading, peer: &Peer) -> bool {
    let preshared = there.preshared_key.as_ref();
    preshared.is_some_and(|key| key.secret() == peer.preshared_key.secret())
        && normal(&there.prefixes) == peer.prefixes
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::PresharedKey;

    fn peer(key: u8) -> Peer {
        Peer {
            number: 5,
            public_key: PublicKey::new([key; 32]),
            preshared_key: PresharedKey::new(Zeroizing::new([key; 32])),
            endpoint: "192.0.2.1:51872".parse().unwrap(),
            prefixes: vec!["10.1.0.0/16".parse().unwrap()],
        }
    }

    fn as_read(peer: &Peer) -> PeerReading {
        PeerReading {
            preshared_key: Some(peer.preshared_key.clone()),
            prefixes: peer.prefixes.clone(),
            endpoint: Some("203.0.113.9:1".parse().unwrap()),
            ..PeerReading::new(peer.public_key)
        }
    }

    fn reading(key: &PrivateKey, peers: Vec<PeerReading>) -> Reading {
        let options = Options::new("/run");
        Reading {
            private_key: Some(key.clone()),
            port: options.port,
            fwmark: options.fwmark,
            peers,
        }
    }

    #[test]
    fn a_device_that_is_as_it_was_set_is_left_alone() {
        let key = PrivateKey::generate();
        let wanted = BTreeMap::from([(peer(1).public_key, peer(1))]);
        let reading = reading(&key, vec![as_read(&peer(1))]);
        let (change, found) = repairs(&Options::new("/run"), &key, &wanted, reading);
        assert!(found.is_empty() && change.peers.is_empty(), "{found:?}");
    }

    #[test]
    fn whatever_was_changed_is_named_and_set_back() {
        let key = PrivateKey::generate();
        let wanted: BTreeMap<_, _> = [1, 2, 3, 4]
            .map(|key| (peer(key).public_key, peer(key)))
            .into();
        let stolen = PeerReading {
            prefixes: vec!["10.9.0.0/16".parse().unwrap()],
            ..as_read(&peer(1))
        };
        let unbound = PeerReading {
            preshared_key: None,
            ..as_read(&peer(2))
        };
        let foreign = as_read(&peer(9));
        let mut reading = reading(
            &PrivateKey::generate(),
            vec![stolen, unbound, as_read(&peer(3)), foreign],
        );
        reading.port = 1;
        reading.fwmark = 2;
        let (change, found) = repairs(&Options::new("/run"), &key, &wanted, reading);
        assert_eq!(found.len(), 7, "{found:?}");
        assert_eq!(change.peers.len(), 4);
        assert!(
            matches!(change.peers.first(), Some(PeerChange::Remove(key)) if *key == peer(9).public_key)
        );
        assert_eq!(
            (change.port, change.fwmark),
            (Some(51872), Some(0x7250_0000))
        );
        assert!(
            change
                .private_key
                .is_some_and(|set| set.public_key() == key.public_key())
        );
    }
}
