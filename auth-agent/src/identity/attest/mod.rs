//! Workload attestation: what is true of the process at the other end of a socket.
//!
//! Everything is read through one descriptor of the process's folder under `/proc`, which never becomes another
//! process's, and counts only if the process lived at the end: a process number that is used again names nobody
//! else. What costs more than a look (a hash of the program, names of users) is learned only if an entry asks.
//!
//! What this cannot show: which program a process ran when it connected. A user who may start a program can connect
//! first and become that program then, so `unix:path` and `unix:sha256` are narrower than, and no substitute for,
//! `unix:uid`.

mod cgroup;
mod executable;
mod netns;
mod process;
mod unix;

use std::sync::Arc;
use std::sync::{PoisonError, RwLock};

use handfast_ca::model::Selector;

pub use cgroup::pattern_matches;

use self::executable::Hashes;
use self::process::Process;
use super::selectors::Demands;
use crate::endpoint::Endpoint;
use crate::workload_api::{AttestError, Peer};

/// Looks at processes. Cheap to share; it remembers hashes of programs.
#[derive(Debug, Default)]
pub struct Attestor {
    hashes: Hashes,
    endpoints: RwLock<Arc<Vec<Endpoint>>>,
}

impl Attestor {
    /// The endpoints of this node: a process in an endpoint's network namespace has the endpoint's properties.
    pub fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        *self
            .endpoints
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(endpoints);
    }

    /// One more endpoint, or one that has changed.
    pub fn add_endpoint(&self, endpoint: Endpoint) {
        let mut endpoints = self
            .endpoints
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let endpoints = Arc::make_mut(&mut *endpoints);
        match endpoints.iter_mut().find(|known| known.id == endpoint.id) {
            Some(known) => *known = endpoint,
            None => endpoints.push(endpoint),
        }
    }

    /// What is true of `peer`. Blocks on the file system, and on the name service where names are asked for.
    ///
    /// # Errors
    /// The process exited while it was looked at, or the system refused.
    pub fn look(&self, peer: &Peer, demands: Demands) -> Result<Vec<Selector>, AttestError> {
        let endpoints = Arc::clone(
            &self
                .endpoints
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let looked = Process::open(peer).and_then(|process| {
            let mut found = Vec::with_capacity(16);
            unix::look(peer, &process, demands, &mut found)?;
            executable::look(&process, &self.hashes, demands, &mut found)?;
            cgroup::look(&process, &mut found)?;
            netns::look(&process, &endpoints, &mut found)?;
            Ok(found)
        });
        // Whatever was read: of a process that is gone it may say nothing.
        if peer.is_alive() {
            looked
        } else {
            Err(AttestError::Gone)
        }
    }
}

/// One property, as entries write it.
fn selector(kind: &str, value: impl Into<String>) -> Selector {
    Selector {
        kind: kind.to_owned(),
        value: value.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that connects to us and waits.
    pub(super) fn caller(folder: &std::path::Path) -> (Child, UnixStream) {
        use std::io::Read;
        let path = folder.join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                      s.send(b'x')\nsys.stdin.read()";
        let child = Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut connection, _) = listener.accept().unwrap();
        connection.read_exact(&mut [0]).unwrap();
        (child, connection)
    }

    fn has(found: &[Selector], kind: &str, value: &str) -> bool {
        found.iter().any(|s| s.kind == kind && s.value == value)
    }

    #[test]
    fn a_process_is_known_by_user_groups_program_and_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, connection) = caller(folder.path());
        let peer = Peer::of(&connection).unwrap();
        let program =
            std::fs::canonicalize(std::fs::read_link(format!("/proc/{}/exe", child.id())).unwrap())
                .unwrap();
        let all = Demands {
            sha256: true,
            names: true,
        };
        let attestor = Attestor::default();
        let found = attestor.look(&peer, all).unwrap();
        let uid = nix::unistd::geteuid();
        assert!(has(&found, "unix", &format!("uid:{uid}")), "{found:?}");
        let user = nix::unistd::User::from_uid(uid).unwrap().unwrap().name;
        assert!(has(&found, "unix", &format!("user:{user}")), "{found:?}");
        assert!(has(&found, "unix", &format!("path:{}", program.display())));
        let digest = handfast_ca::bundle::sha256(&std::fs::read(&program).unwrap());
        let digest = data_encoding::HEXLOWER.encode(&digest);
        assert!(has(&found, "unix", &format!("sha256:{digest}")));
        for group in nix::unistd::getgroups().unwrap() {
            let value = format!("supplementary_gid:{group}");
            assert!(has(&found, "unix", &value), "{value} in {found:?}");
        }
        let little = attestor.look(&peer, Demands::default()).unwrap();
        assert!(!little.iter().any(|s| s.value.starts_with("sha256:")));
        assert!(!little.iter().any(|s| s.value.starts_with("user:")));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_caller_that_exits_is_named_as_gone_not_as_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, connection) = caller(folder.path());
        let peer = Peer::of(&connection).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let looked = Attestor::default().look(&peer, Demands::default());
        assert_eq!(looked, Err(AttestError::Gone));
    }

    #[test]
    fn a_process_that_took_over_the_number_of_a_dead_caller_is_not_attested_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, connection) = caller(folder.path());
        let peer = Peer::of(&connection).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // The kernel lets root name the next number (CONFIG_CHECKPOINT_RESTORE); the new process gets the old one's.
        let number = "/proc/sys/kernel/ns_last_pid";
        let mut taken = None;
        for _ in 0..50 {
            if std::fs::write(number, (peer.pid() - 1).to_string()).is_err() {
                break;
            }
            let mut other = Command::new("sleep").arg("10").spawn().unwrap();
            if other.id() == peer.pid() {
                taken = Some(other);
                break;
            }
            other.kill().unwrap();
            other.wait().unwrap();
        }
        let Some(mut other) = taken else {
            eprintln!("SKIPPED: this kernel lets nobody choose a process number");
            return;
        };
        let looked = Attestor::default().look(&peer, Demands::default());
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(looked, Err(AttestError::Gone));
    }
}
