//! The stage of the demonstration: a mesh of two nodes, the workloads, and the instruments that watch them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::harness::capture::{Capture, WireWatch, inject};
use super::harness::evidence;
use super::harness::lab::{Lab, Workload};
use super::harness::mesh::{self, Authority, Node, Status, TUNNEL_PORTS, spiffe_id};
use super::harness::process::{Process, command};
use super::harness::scan::canary;
use super::harness::wait;

/// The policy of the examples: only `client: good` may reach `run: nginx` on port 80, proven.
const POLICY: &str = include_str!("../../examples/nginx.yaml");

/// Lets the right client use every protocol, for iperf3 and ping; proof is required as before.
const MORE_PROTOCOLS: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: measure
spec:
  endpointSelector:
    matchLabels:
      run: nginx
  ingress:
    - fromEndpoints:
        - matchLabels:
            client: good
      authentication:
        mode: required
";

/// The service's virtual addresses, translated on node 1.
pub const SERVICE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 80)),
    IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x80)),
];

/// What all workloads of the demonstration are part of.
#[derive(Debug)]
pub struct Stage {
    /// The server's programs and the clients', ended before anything else is.
    pub programs: Vec<Process>,
    /// Watches the underlay from the first frame to the last.
    pub wire: Capture<WireWatch>,
    /// The node of the clients.
    pub n1: Node,
    /// The node of the server.
    pub n2: Node,
    /// The CA.
    pub authority: Authority,
    /// Labelled `run: nginx`, on node 2.
    pub server: Workload,
    /// Labelled `client: good`, on node 1.
    pub good: Workload,
    /// Labelled `client: bad`, on node 1.
    pub bad: Workload,
    /// Has no label that any policy names, on node 1; it talks before there is a policy.
    pub guest: Workload,
    /// The server's addresses.
    pub server_addresses: [IpAddr; 2],
    /// The page that the server has: must arrive, and must never be seen on the underlay.
    pub secret: String,
    /// Last, so that it is dropped last: it removes what all of the above lives in.
    lab: Lab,
}

impl Stage {
    /// Builds it all. Returns what was checked on the way.
    pub fn build(encryption: &str) -> anyhow::Result<(Self, String)> {
        let binary = std::env::current_exe().context("find this program's own file")?;
        let lab = Lab::create("hfd")?;
        let secret = format!("handfast-demonstration-secret-{}", lab.name());
        let canary = format!("handfast-demonstration-canary-{}", lab.name());
        let watch = WireWatch::new(
            mesh::ranges(),
            canary.as_bytes(),
            secret.as_bytes(),
            &TUNNEL_PORTS,
        );
        let wire = Capture::start(lab.switch(), watch)?;
        let mut n1 = Node::create(&lab, &binary, 1)?;
        let mut n2 = Node::create(&lab, &binary, 2)?;
        for node in [&mut n1, &mut n2] {
            node.also(&["--encryption", encryption]);
        }
        let seen = prove_sight(&wire, &n1, canary.as_bytes())?;

        let authority = Authority::start(&lab, &binary)?;
        let mut stage = Self {
            programs: Vec::new(),
            wire,
            server: lab.workload("nginx")?,
            good: lab.workload("good")?,
            bad: lab.workload("bad")?,
            guest: lab.workload("guest")?,
            server_addresses: mesh::workload_addresses(2, 2),
            n1,
            n2,
            authority,
            secret,
            lab,
        };
        match stage.bring_up() {
            Ok(tunnel) => Ok((
                stage,
                format!(
                    "2 agents joined by token; {encryption}: {tunnel}; the capture saw {seen} of \
                     {seen} planted clear frames, plain and in VXLAN, Geneve, IPIP, GRE"
                ),
            )),
            Err(error) => {
                // Nobody else can look: the stage is gone when this returns.
                eprintln!("{}", stage.evidence());
                Err(error)
            }
        }
    }

    /// Starts everything that runs from the beginning. Returns the tunnel's kind.
    fn bring_up(&mut self) -> anyhow::Result<String> {
        self.register()?;
        for node in [&mut self.n1, &mut self.n2] {
            node.join(&self.authority)?;
            node.launch()?;
        }
        self.n1.ready()?;
        self.n2.ready()?;
        self.n2.attach(&self.server, 2)?;
        self.n1.attach(&self.guest, 5)?;
        self.serve()?;
        self.offer_service()?;
        self.n2.identified("nginx")?;
        self.n1.identified("guest")?;
        Ok(self.status(&self.n1)?.tunnel)
    }

    fn register(&self) -> anyhow::Result<()> {
        for (workload, labels) in [
            (&self.server, ["run=nginx"]),
            (&self.good, ["client=good"]),
            (&self.bad, ["client=bad"]),
            (&self.guest, ["client=guest"]),
        ] {
            self.authority
                .entry(&workload.short, workload.ns.name(), &labels)?;
        }
        Ok(())
    }

    /// A web server, with a page and a file that no download gets to the end of.
    fn serve(&mut self) -> anyhow::Result<()> {
        let www = self.lab.dir().join("www");
        std::fs::create_dir(&www)?;
        std::fs::write(www.join("index.html"), &self.secret)?;
        // Sparse: takes no room.
        std::fs::File::create(www.join("big"))?.set_len(16 << 30)?;
        let server = self.server.place.spawn(
            "http-server",
            command("python3", &["-m", "http.server", "80", "--bind", "::"])
                .arg("--directory")
                .arg(&www)
                .env("PYTHONUNBUFFERED", "1"),
        )?;
        self.programs.push(server);
        let mut probe = || {
            let asked = self.server.place.run(
                &mut command(
                    "curl",
                    &["-sS", "--noproxy", "*", "-o", "/dev/null", "http://[::1]/"],
                ),
                Duration::from_secs(5),
            )?;
            Ok(asked.status.success().then_some(()))
        };
        wait::until(
            "python3 -m http.server",
            Duration::from_secs(15),
            &mut probe,
        )
    }

    /// A service address on node 1, as kube-proxy makes them.
    fn offer_service(&self) -> anyhow::Result<()> {
        let [service4, service6] = SERVICE;
        let [server4, server6] = self.server_addresses;
        let rules = format!(
            "table inet service {{
               chain translate {{
                 type nat hook prerouting priority dstnat;
                 ip daddr {service4} tcp dport 80 dnat ip to {server4}
                 ip6 daddr {service6} tcp dport 80 dnat ip6 to {server6}
               }}
             }}"
        );
        self.n1
            .host
            .place
            .run(&mut command("nft", &[rules]), Duration::from_secs(5))?
            .success("make a service address with nft")
            .map(drop)
    }

    /// Puts the policy of the examples in force on both nodes.
    pub fn apply_example(&self) -> anyhow::Result<()> {
        self.apply("nginx.yaml", POLICY)
    }

    /// Lets the right client use every protocol.
    pub fn apply_more_protocols(&self) -> anyhow::Result<()> {
        self.apply("measure.yaml", MORE_PROTOCOLS)
    }

    fn apply(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path: PathBuf = self.lab.dir().join(name);
        std::fs::write(&path, text)?;
        let nodes = [&self.n1, &self.n2];
        let before = nodes.map(|node| self.status(node).map(|s| s.policy_version));
        self.authority.apply(&path)?;
        for (node, before) in nodes.into_iter().zip(before) {
            let before = before?;
            wait::until("the policy on both nodes", Duration::from_secs(10), || {
                let status = self.status(node)?;
                Ok((status.policy_version > before).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Asks a node's agent how it is.
    pub fn status(&self, node: &Node) -> anyhow::Result<Status> {
        node.json(&["status"])
    }

    /// The SPIFFE ID of a workload.
    pub fn id(&self, workload: &Workload) -> String {
        spiffe_id(&workload.short)
    }

    /// What helps to understand a failure: the ends of the logs, the state of both nodes, findings of the capture.
    pub fn evidence(&self) -> String {
        let mut text = evidence::gather(&[&self.n1, &self.n2], &self.lab.logs());
        self.wire.with(|wire| {
            text.push_str("--- findings on the underlay\n");
            text.push_str(&wire.describe_findings());
        });
        text
    }

    /// Leaves everything running. Returns how to look around and how to end it.
    pub fn keep(mut self) -> anyhow::Result<String> {
        self.authority
            .cli(&[
                "revoke",
                "--spiffe-id",
                &self.id(&self.good),
                "--undo",
                "--reason",
                "kept to look around",
            ])?
            .success("lift the revocation again")?;
        self.lab.keep()?;
        let (n1, n2) = (self.n1.socket(), self.n2.socket());
        let hints = format!(
            "Still running (the good client's revocation was lifted). Look around:
  export HANDFAST_ADMIN_SOCKET={n1}      # node 1; node 2: {n2}
  handfast status; handfast endpoint list; handfast pair list; handfast observe --follow
  handfast revoke --spiffe-id {good} --reason looking --admin-socket {ca}
  ip netns exec {good_ns} curl http://{service}/      # the right client, by the service's address
  ip netns exec {bad_ns} curl -m 2 http://{server}/       # the wrong one
End it with:
  handfast demo --stop",
            n1 = n1.display(),
            n2 = n2.display(),
            ca = self.authority.socket().display(),
            good = self.id(&self.good),
            good_ns = self.good.ns.name(),
            bad_ns = self.bad.ns.name(),
            service = SERVICE[0],
            server = self.server_addresses[0],
        );
        for program in &mut self.programs {
            program.detach();
        }
        self.authority.detach()?;
        self.n1.detach()?;
        self.n2.detach()?;
        Ok(hints)
    }
}

/// Sends clear frames from node 1, before anything of handfast runs, which the capture must report.
fn prove_sight(wire: &Capture<WireWatch>, node: &Node, marker: &[u8]) -> anyhow::Result<usize> {
    let v4 = |a, b| Ipv4Addr::new(10, 77, a, b);
    let v6 = |a, b| Ipv6Addr::new(0xfd77, 0, 0, a, 0, 0, 0, b);
    let nobody = Ipv4Addr::new(172, 31, 250, 250);
    let frames = canary::frames(
        (v4(1, 250), v4(2, 250)),
        (v6(1, 250), v6(2, 250)),
        (nobody, nobody),
        marker,
    );
    for (_, frame) in &frames {
        inject(&node.host.ns, "eth0", frame)?;
    }
    wait::until(
        "the capture to see planted frames",
        Duration::from_secs(3),
        || {
            let missed = wire.with(|wire| {
                frames
                    .iter()
                    .filter(|(wrapping, _)| !wire.canaries.contains(wrapping))
                    .count()
            });
            Ok((missed == 0).then_some(()))
        },
    )?;
    let seen = wire.with(|wire| wire.canaries.len());
    ensure!(
        seen >= frames.len(),
        "the capture saw only {seen} of {} planted frames",
        frames.len()
    );
    Ok(frames.len())
}
