//! Agents and CAs whose clocks disagree, and nodes that were off for long.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::Error;
use crate::authority::{self, Setup};
use crate::certificate::PrivateKey;
use crate::client::admin::{Admin, NewEntry, TokenRequest};
use crate::client::{self, AgentClient, Joined, SvidKind, SvidRequest};
use crate::deny::DenyList;
use crate::server::{Options, Server};
use crate::test_clock::off_by;
use crate::token::JoinToken;
use crate::verify::Verifier;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// A CA on a thread with a clock of its own.
struct Ca {
    address: SocketAddr,
    token: JoinToken,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<TempDir>,
}

impl Ca {
    fn start(folder: TempDir, seconds: i64) -> Self {
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = off_by(seconds, move || async move {
            let dir = folder.path().join("ca");
            let admin_socket = folder.path().join("ca.sock");
            if !dir.exists() {
                let trust_domain = authority::trust_domain("example.org").unwrap();
                let prefix_ranges = vec!["10.0.0.0/8".parse().unwrap()];
                let setup = Setup::new(dir.clone(), trust_domain, prefix_ranges);
                authority::init(&setup).await.unwrap();
            }
            let listen = SocketAddr::from(([127, 0, 0, 1], 0));
            let options = Options::new(dir, listen, admin_socket.clone());
            let server = Server::bind(&options).await.unwrap();
            let address = server.local_addr();
            let prepare = async {
                let mut admin = Admin::connect(&admin_socket).await.unwrap();
                let token = admin.create_token(&order(address)).await.unwrap();
                let entry = NewEntry {
                    spiffe_id: "spiffe://example.org/web".to_owned(),
                    selectors: vec!["netns:web".to_owned()],
                    ..NewEntry::default()
                };
                // Made already when it is the second start.
                let _ = admin.create_entry(&entry).await;
                ready.send((address, token)).unwrap();
            };
            let run = server.run(async { drop(stopped.await) });
            let (ran, ()) = tokio::join!(run, prepare);
            ran.unwrap();
            folder
        });
        let (address, token) = started.recv_timeout(Duration::from_secs(20)).unwrap();
        Self {
            address,
            token,
            stop,
            thread,
        }
    }

    fn stop(self) -> TempDir {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap()
    }

    fn join(&self, seconds: i64) -> Result<Joined, Error> {
        let token = self.token.clone();
        off_by(seconds, move || async move { client::join(&token).await })
            .join()
            .unwrap()
    }
}

fn order(address: SocketAddr) -> TokenRequest {
    TokenRequest {
        node: "web1".parse().unwrap(),
        prefixes: vec!["10.1.0.0/24".parse().unwrap()],
        underlay: vec!["192.0.2.1".to_owned()],
        ca_address: address.to_string(),
        ttl: Duration::from_secs(600),
        joining: false,
    }
}

fn names_both_clocks(error: &Error) {
    let Error::Clock { ours, theirs, .. } = error else {
        panic!("{error}")
    };
    assert_ne!(ours, theirs);
    let text = error.to_string();
    assert!(
        text.contains(ours) && text.contains(theirs) && text.contains("NTP"),
        "{text}"
    );
}

#[test]
fn a_join_by_a_wrong_clock_names_both_and_spends_nothing() {
    let ca = Ca::start(tempfile::tempdir().unwrap(), 0);
    for seconds in [DAY, -DAY, 400 * DAY, -400 * DAY, 6 * HOUR, 600, -600] {
        names_both_clocks(&ca.join(seconds).unwrap_err());
    }
    let joined = ca
        .join(120)
        .expect("two minutes do no harm, and the token is still good");
    assert_eq!(joined.node.name.as_str(), "web1");
    ca.stop();
}

#[test]
fn a_joined_agent_by_a_wrong_clock_names_both() {
    let ca = Ca::start(tempfile::tempdir().unwrap(), 0);
    let joined = std::sync::Arc::new(ca.join(0).unwrap());
    for seconds in [2 * DAY, -2 * DAY, 6 * HOUR] {
        let (joined, address) = (std::sync::Arc::clone(&joined), ca.address.to_string());
        let connect = off_by(seconds, move || async move {
            let verifier = Verifier::new(joined.bundle.clone(), DenyList::empty());
            AgentClient::connect(&address, &verifier, &joined.identity).await
        });
        names_both_clocks(&connect.join().unwrap().unwrap_err());
    }
    ca.stop();
}

#[test]
fn a_node_that_was_off_gets_its_next_certificate_and_nothing_else() {
    let ca = Ca::start(tempfile::tempdir().unwrap(), 0);
    let joined = ca.join(0).unwrap();
    let folder = ca.stop();

    let later = 3 * DAY;
    let ca = Ca::start(folder, later);
    let address = ca.address.to_string();
    let agent = off_by(later, move || async move {
        let verifier = Verifier::new(joined.bundle.clone(), DenyList::empty());
        let agent = AgentClient::connect(&address, &verifier, &joined.identity)
            .await
            .unwrap();
        let request = |kind| {
            let csr = PrivateKey::generate().unwrap().csr().unwrap();
            vec![SvidRequest { kind, csr }]
        };
        let proof = SvidKind::Proof {
            entry_id: "x".to_owned(),
        };
        let refused = agent.issue(request(proof)).await.unwrap_err().to_string();
        assert!(refused.contains("has expired"), "{refused}");
        assert!(agent.updates().await.is_err());
        let node = agent
            .issue(request(SvidKind::Node))
            .await
            .unwrap()
            .remove(0)
            .unwrap();
        assert!(verifier.node(&node.chain, crate::now()).is_ok());
        // The old key is not the last one any more.
        assert!(agent.issue(request(SvidKind::Node)).await.is_err());
    });
    agent.join().unwrap();
    let folder = ca.stop();

    // The issuing CA has been renewed in between; the root has not.
    let ca = Ca::start(folder, 60 * DAY);
    assert!(ca.join(60 * DAY).is_ok());
    ca.stop();
}

#[test]
fn a_node_that_was_off_for_too_long_joins_again() {
    let ca = Ca::start(tempfile::tempdir().unwrap(), 0);
    let joined = ca.join(0).unwrap();
    let folder = ca.stop();
    let later = 40 * DAY;
    let ca = Ca::start(folder, later);
    let address = ca.address.to_string();
    let refused = off_by(later, move || async move {
        let verifier = Verifier::new(joined.bundle.clone(), DenyList::empty());
        AgentClient::connect(&address, &verifier, &joined.identity)
            .await
            .unwrap_err()
            .to_string()
    });
    let refused = refused.join().unwrap();
    assert!(refused.contains("join again with a new token"), "{refused}");
    ca.stop();
}
