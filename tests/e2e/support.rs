//! What every test here begins with: is the machine fit, and is it our turn?

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::harness::lab::{Lab, Workload};
use crate::harness::mesh::{Authority, Node, Status};
use crate::harness::process::{Finished, Process, command};
use crate::harness::{evidence, requirements, wait};

/// The turn of one test. Others, in this process or another, wait.
pub struct Turn(#[allow(dead_code)] Flock<File>);

/// Takes the turn, or says why the test cannot run.
pub fn turn(test: &str) -> Option<Turn> {
    turn_over(test, "wireguard")
}

/// The same for a test whose nodes have this kind of tunnel.
pub fn turn_over(test: &str, encryption: &str) -> Option<Turn> {
    let missing = requirements::missing_for(encryption);
    if !missing.is_empty() {
        eprintln!("skipped: {test}: missing {}", missing.join("; "));
        return None;
    }
    let file = File::open(repository("Cargo.toml")).unwrap();
    Some(Turn(Flock::lock(file, FlockArg::LockExclusive).unwrap()))
}

/// The program under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_handfast"))
}

/// A program that was expected to fail with 1, and to say these words.
#[track_caller]
pub fn fails(said: &Finished, words: &[&str]) {
    assert_eq!(said.code(), 1, "{said:?}");
    let complaint = said.stderr.to_lowercase();
    for word in words {
        assert!(
            complaint.contains(&word.to_lowercase()),
            "no {word:?} in: {complaint}"
        );
    }
}

/// Runs `handfast` as the user nobody.
pub fn as_nobody(words: &[&str]) -> Finished {
    // The build's folder may be root's alone.
    let lab = Lab::create("hft").unwrap();
    let copy = lab.dir().join("handfast");
    std::fs::copy(binary(), &copy).unwrap();
    let host = lab.host("n1", 1).unwrap();
    let mut all = vec![
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        copy.to_str().unwrap(),
    ];
    all.extend(words);
    host.place.run(&mut command("setpriv", &all), SOON).unwrap()
}

/// Gets a page, or why there is none: curl's exit code.
pub fn curl(client: &Workload, url: &str, limit_s: u8) -> Result<String, i32> {
    let limit = limit_s.to_string();
    let said = client
        .place
        .run(
            &mut command("curl", &["-sS", "-g", "--noproxy", "*", "-m", &limit, url]),
            SOON,
        )
        .unwrap();
    match said.code() {
        0 => Ok(said.stdout),
        code => Err(code),
    }
}

/// The URL of an address, on port 80.
pub fn url(address: IpAddr) -> String {
    format!("http://{}/", std::net::SocketAddr::new(address, 80))
}

/// A web server with one page, on port 80 of both families.
pub fn serve(lab: &Lab, server: &Workload) -> Process {
    let www = lab.dir().join(format!("www-{}", server.short));
    std::fs::create_dir_all(&www).unwrap();
    std::fs::write(www.join("index.html"), PAGE).unwrap();
    std::fs::File::create(www.join("big"))
        .unwrap()
        .set_len(8 << 30)
        .unwrap();
    let process = server
        .place
        .spawn(
            &format!("http-{}", server.short),
            command("python3", &["-m", "http.server", "80", "--bind", "::"])
                .arg("--directory")
                .arg(&www),
        )
        .unwrap();
    wait::until("the web server", SOON, || {
        Ok(curl(server, "http://[::1]/", 2).ok())
    })
    .unwrap();
    process
}

/// What `serve` serves.
pub const PAGE: &str = "the page of the end-to-end tests";

/// The policy of the examples.
pub fn example_policy() -> String {
    std::fs::read_to_string(repository("examples/nginx.yaml")).unwrap()
}

/// Two nodes with agents, a CA, and no workload yet. The lab is last, so that it is dropped last.
pub struct Mesh {
    pub n1: Node,
    pub n2: Node,
    pub authority: Authority,
    pub lab: Lab,
}

impl Mesh {
    /// Builds it.
    pub fn start() -> Self {
        Self::start_over("wireguard")
    }

    /// Builds it with tunnels of this kind.
    pub fn start_over(encryption: &str) -> Self {
        let lab = Lab::create("hft").unwrap();
        let authority = Authority::start(&lab, binary()).unwrap();
        let [n1, n2] = [1, 2].map(|number| {
            let mut node = Node::create(&lab, binary(), number).unwrap();
            node.also(&["--encryption", encryption]);
            node.join(&authority).unwrap();
            node.run().unwrap();
            node
        });
        Self {
            n1,
            n2,
            authority,
            lab,
        }
    }

    /// A registered workload, attached to a node as number `index`, with its identity.
    pub fn workload(&self, node: &Node, short: &str, labels: &[&str], index: u8) -> Workload {
        let workload = self.lab.workload(short).unwrap();
        self.authority
            .entry(short, workload.ns.name(), labels)
            .unwrap();
        node.attach(&workload, index).unwrap();
        node.identified(short).unwrap();
        workload
    }

    /// Puts a service address on a node: port 80 of `virtual_addresses` is the server's.
    pub fn service(&self, node: &Node, virtual_addresses: [IpAddr; 2], server: [IpAddr; 2]) {
        let rules = format!(
            "table inet service {{
               chain translate {{
                 type nat hook prerouting priority dstnat;
                 ip daddr {} tcp dport 80 dnat ip to {}
                 ip6 daddr {} tcp dport 80 dnat ip6 to {}
               }}
             }}",
            virtual_addresses[0], server[0], virtual_addresses[1], server[1]
        );
        node.host
            .place
            .run(&mut command("nft", &[rules]), SOON)
            .unwrap()
            .success("nft")
            .unwrap();
    }

    /// What a failure leaves to look at.
    pub fn evidence(&self) -> String {
        evidence::gather(&[&self.n1, &self.n2], &self.lab.logs())
    }

    /// What a node's agent says of itself.
    pub fn status(&self, node: &Node) -> Status {
        node.json(&["status"]).unwrap()
    }

    /// Waits until a node's gates hold a packet, more than these that they had held before.
    pub fn holds(&self, node: &Node, before: u64) -> anyhow::Result<()> {
        wait::until("a held packet", SOON, || {
            Ok((self.status(node).packets("held") > before).then_some(()))
        })
    }

    /// Puts a policy in force on both nodes.
    pub fn apply(&self, text: &str) {
        let path = self.lab.dir().join("policy.yaml");
        std::fs::write(&path, text).unwrap();
        let version = |node: &Node| self.status(node).policy_version;
        let before = [&self.n1, &self.n2].map(version);
        self.authority.apply(&path).unwrap();
        for (node, before) in [&self.n1, &self.n2].into_iter().zip(before) {
            wait::until("the policy in force", SOON, || {
                Ok((version(node) > before).then_some(()))
            })
            .unwrap();
        }
    }
}

/// How long anything may take that must not be measured.
pub const SOON: std::time::Duration = std::time::Duration::from_secs(15);

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
