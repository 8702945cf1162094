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
mod endpoints;
mod executable;
mod hashes;
mod netns;
mod pod;
mod process;
mod unix;

use std::fs::File;
use std::sync::Arc;

use handfast_ca::model::Selector;

pub use cgroup::{pattern_matches, pod_uid};

pub(super) use self::endpoints::Touched;

use self::endpoints::Endpoints;
use self::hashes::Hashes;
use self::process::Process;
use super::selectors::Demands;
use super::turns::Turns;
use crate::endpoint::Endpoint;
use crate::workload_api::{AttestError, Attested, Peer};

/// Processes that are looked at at once, in all and of one group of processes: each takes a thread.
const LOOKS: usize = 8;
const LOOKS_OF_GROUP: usize = 2;

/// Looks at processes. It remembers hashes of programs.
#[derive(Debug)]
pub struct Attestor {
    hashes: Arc<Hashes>,
    endpoints: Endpoints,
    turns: Turns,
}

impl Default for Attestor {
    fn default() -> Self {
        Self {
            hashes: Arc::default(),
            endpoints: Endpoints::default(),
            turns: Turns::new(LOOKS, LOOKS_OF_GROUP),
        }
    }
}

/// What a look has found, and what is still to be read.
struct Look {
    selectors: Vec<Selector>,
    netns: Option<u64>,
    program: Option<File>,
    endpoints: u64,
}

impl Attestor {
    /// The endpoints of this node: a process in an endpoint's network namespace has the endpoint's properties.
    /// Returns whom a look from now on may find to be another; none if nothing has changed.
    pub(super) fn set_endpoints(&self, endpoints: Vec<Endpoint>) -> Option<Touched> {
        self.endpoints.set(endpoints)
    }

    /// One more endpoint, or one that has changed.
    pub(super) fn add_endpoint(&self, endpoint: Endpoint) -> Option<Touched> {
        self.endpoints.add(endpoint)
    }

    /// What is true of `peer`. It is read on a thread that may block, of which no group of processes has many.
    ///
    /// # Errors
    /// The process exited while it was looked at, or the system refused.
    pub async fn look(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        demands: Demands,
    ) -> Result<Attested, AttestError> {
        let turn = self.turns.next(peer.group()).await;
        let (attestor, looked_at) = (Arc::clone(self), Arc::clone(peer));
        let looking = tokio::task::spawn_blocking(move || {
            // Kept until it has really looked, also if nobody waits for it any more.
            let _turn = turn;
            attestor.look_now(&looked_at, demands)
        });
        let mut look = looking
            .await
            .map_err(|error| AttestError::Failed(error.to_string()))??;
        if let Some(program) = look.program
            && let Some(hash) = self.hashes.of(program, peer.group()).await?
        {
            look.selectors
                .push(selector("unix", format!("sha256:{hash}")));
        }
        // Whatever was read: of a process that is gone it may say nothing.
        if !peer.is_alive() {
            return Err(AttestError::Gone);
        }
        Ok(Attested {
            peer: Arc::clone(peer),
            selectors: look.selectors,
            netns: look.netns,
            endpoints: look.endpoints,
        })
    }

    fn look_now(&self, peer: &Peer, demands: Demands) -> Result<Look, AttestError> {
        let (version, endpoints) = self.endpoints.now();
        let looked = Process::open(peer).and_then(|process| {
            let mut found = Vec::with_capacity(16);
            unix::look(peer, &process, demands, &mut found)?;
            let program = executable::look(&process, demands, &mut found)?;
            cgroup::look(&process, &mut found)?;
            let netns = netns::look(&process, &endpoints, &mut found)?;
            Ok(Look {
                selectors: found,
                netns,
                program,
                endpoints: version,
            })
        });
        if peer.is_alive() {
            looked
        } else {
            Err(AttestError::Gone)
        }
    }

    /// What is left of a workload whose namespace means something else by now, until it could be looked at again.
    pub(super) fn without_namespace(attested: &Attested) -> Attested {
        let mut less = attested.clone();
        less.selectors
            .retain(|found| !netns::is_of_namespace(found));
        less
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

    /// A process that is given the number of one that is gone, as root may ask of the kernel.
    fn successor(number: u32) -> Option<Child> {
        use std::io::BufRead;
        let script = "import ctypes,os,struct,sys,time\nn=ctypes.c_int(int(sys.argv[1]))\n\
                      a=struct.pack('11Q',0,0,0,0,17,0,0,0,ctypes.addressof(n),1,0)\n\
                      p=ctypes.CDLL(None).syscall(435,ctypes.create_string_buffer(a),len(a))\n\
                      if p==0:\n os.close(1)\n time.sleep(60)\n os._exit(0)\n\
                      print(p,flush=True)\nsys.stdin.read()\np>0 and os.kill(p,9)";
        let mut child = Command::new("python3")
            .args(["-c", script, &number.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = child.stdout.take().unwrap();
        std::io::BufReader::new(output)
            .read_line(&mut line)
            .unwrap();
        if line.trim() == number.to_string() {
            return Some(child);
        }
        drop(child.stdin.take());
        child.wait().unwrap();
        None
    }

    fn has(found: &[Selector], kind: &str, value: &str) -> bool {
        found.iter().any(|s| s.kind == kind && s.value == value)
    }

    #[tokio::test]
    async fn a_process_is_known_by_user_groups_program_and_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, connection) = caller(folder.path());
        let peer = Arc::new(Peer::of(&connection).unwrap());
        let program =
            std::fs::canonicalize(std::fs::read_link(format!("/proc/{}/exe", child.id())).unwrap())
                .unwrap();
        let all = Demands {
            sha256: true,
            names: true,
        };
        let attestor = Arc::new(Attestor::default());
        let found = attestor.look(&peer, all).await.unwrap().selectors;
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
        let little = attestor.look(&peer, Demands::default()).await.unwrap();
        let little = little.selectors;
        assert!(!little.iter().any(|s| s.value.starts_with("sha256:")));
        assert!(!little.iter().any(|s| s.value.starts_with("user:")));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_caller_that_exits_is_named_as_gone_not_as_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, connection) = caller(folder.path());
        let peer = Arc::new(Peer::of(&connection).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        let attestor = Arc::new(Attestor::default());
        let looked = attestor.look(&peer, Demands::default()).await;
        let looked = looked.map(|attested| attested.selectors);
        assert_eq!(looked, Err(AttestError::Gone));
    }

    #[tokio::test]
    async fn a_process_that_took_over_the_number_of_a_dead_caller_is_not_attested_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, connection) = caller(folder.path());
        let peer = Arc::new(Peer::of(&connection).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        let Some(mut other) = successor(peer.pid()) else {
            eprintln!("SKIPPED: process numbers cannot be chosen here");
            return;
        };
        let attestor = Arc::new(Attestor::default());
        let looked = attestor.look(&peer, Demands::default()).await;
        let looked = looked.map(|attested| attested.selectors);
        drop(other.stdin.take());
        other.wait().unwrap();
        assert_eq!(looked, Err(AttestError::Gone));
    }
}
