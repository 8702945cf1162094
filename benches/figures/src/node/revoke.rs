//! From the order to revoke an identity until its last packet, on every node.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use handfast_agent::identity::{NodeStore, Standalone};
use handfast_ca::client::admin::TokenRequest;
use handfast_ca::model::Subject;
use nix::sched::{CloneFlags, setns};

use super::mesh::{LONG, Mesh, Wanted, addresses};
use crate::harness::lab::Workload;
use crate::harness::mesh::{Authority, spiffe_id};
use crate::harness::namespace::Namespace;
use crate::harness::wait;
use crate::report::{Figure, Goal, figure};

const TIMES: usize = 20;
/// Agents that hold a stream to the CA and nothing else.
const SIMULATED: usize = 100;
const PORT: u16 = 9000;
/// Nothing has come for so long: it is cut.
const QUIET: Duration = Duration::from_millis(700);

const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: revoked}
spec:
  endpointSelector: {matchLabels: {side: server}}
  ingress:
    - fromEndpoints: [{matchLabels: {side: client}}]
      authentication: {mode: required}
";

/// `node.revoke_max_ms`.
pub fn measure() -> Result<Vec<Figure>> {
    let mut mesh = Mesh::start(3)?;
    mesh.apply(POLICY)?;
    let workloads = mesh.namespaces("w", 3)?;
    let [client, servers @ ..] = workloads.as_slice() else {
        anyhow::bail!("three workloads");
    };
    mesh.attach(1, &[wanted(client, "client", "revoked")])?;
    let clock = Instant::now();
    let mut flows = Vec::new();
    for (server, number) in servers.iter().zip(2..) {
        mesh.attach(number, &[wanted(server, "server", &format!("s{number}"))])?;
        flows.push(Flow::start(client, server, number, clock)?);
    }
    flowing(&flows, clock)?;
    let alone = rounds(&mut mesh, &flows, clock)?;
    let agents = simulated(&mut mesh)?;
    let among = rounds(&mut mesh, &flows, clock)?;
    drop(agents);
    let worst = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    let how = format!(
        "the longest of {TIMES} times, from the order to the CA until the last packet of 1,000 a second on three nodes \
         (two that the identity sends to, and its own that gets their replies): {:.0} ms; another {TIMES} times while \
         {SIMULATED} more agents hold a stream to the CA: {:.0} ms",
        worst(&alone),
        worst(&among)
    );
    Ok(vec![figure(
        "node.revoke_max_ms",
        "ms",
        Goal::AtMost(1000.0),
        vec![worst(&alone).max(worst(&among))],
        &how,
    )?])
}

fn wanted<'a>(workload: &'a Workload, side: &'static str, path: &str) -> Wanted<'a> {
    Wanted {
        workload,
        path: path.to_owned(),
        label: ("side", side.to_owned()),
        index: 2,
    }
}

fn rounds(mesh: &mut Mesh, flows: &[Flow], clock: Instant) -> Result<Vec<f64>> {
    let subject = Subject::spiffe_id(&spiffe_id("revoked"))?;
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let (admin, runtime) = (&mut mesh.admin, &mesh.runtime);
        let start = clock.elapsed();
        runtime.block_on(admin.revoke(&subject, "measured"))?;
        let last = wait::until("the cut", LONG, || {
            let last = flows.iter().flat_map(Flow::last).max();
            let last = last.context("no flow")?;
            Ok((clock.elapsed() > last.max(start) + QUIET).then_some(last))
        })?;
        times.push(last.saturating_sub(start).as_secs_f64() * 1000.0);
        runtime.block_on(admin.unrevoke(&subject, "measured"))?;
        flowing(flows, clock)?;
    }
    eprintln!("from the order to the last packet, ms: {times:.0?}");
    Ok(times)
}

/// Waits until packets arrive everywhere.
fn flowing(flows: &[Flow], clock: Instant) -> Result<()> {
    let since = clock.elapsed();
    wait::until("the flows", LONG, || {
        let all = flows.iter().flat_map(Flow::last);
        Ok(all
            .fold(true, |all, last| all && last > since)
            .then_some(()))
    })?;
    wait::pause(Duration::from_millis(300))
}

/// Other agents' streams, from the CA's own host.
fn simulated(mesh: &mut Mesh) -> Result<Agents> {
    let place = Namespace::open(mesh.authority.host().ns.name())?;
    let place = Arc::new(place);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .on_thread_start(move || {
            // Where this fails no agent connects, which is noticed below.
            let _ = setns(&*place, CloneFlags::CLONE_NEWNET);
        })
        .build()?;
    let mut agents = Vec::new();
    for number in 0..SIMULATED {
        let order = TokenRequest {
            node: format!("simulated{number}").parse()?,
            prefixes: vec![format!("10.77.{}.0/24", 100 + number).parse()?],
            underlay: vec![format!("172.31.250.{}", 100 + number)],
            ca_address: Authority::address(),
            ttl: Duration::from_secs(600),
            joining: false,
        };
        let token = mesh.runtime.block_on(mesh.admin.create_token(&order))?;
        let data = mesh.lab.dir().join(format!("simulated{number}"));
        let store = NodeStore::create(&data)?;
        let join = runtime.spawn(async move {
            let joined = handfast_ca::client::join(&token).await?;
            store.save_joined(&token.ca_address, None, &joined)?;
            anyhow::Ok(Standalone::start(store, None)?)
        });
        agents.push(runtime.block_on(join)??);
    }
    let before = mesh.runtime.block_on(mesh.admin.nodes())?;
    let newest = before.iter().map(|node| node.acknowledged).max();
    wait::until("the simulated agents", LONG, || {
        let nodes = mesh.runtime.block_on(mesh.admin.nodes())?;
        let heard = nodes
            .iter()
            .filter(|node| Some(node.acknowledged) >= newest);
        Ok((heard.count() >= SIMULATED).then_some(()))
    })?;
    ensure!(agents.len() == SIMULATED, "not all have joined");
    Ok(Agents {
        _agents: agents,
        _runtime: runtime,
    })
}

/// The agents end before what they run on.
struct Agents {
    _agents: Vec<Standalone>,
    _runtime: tokio::runtime::Runtime,
}

/// A thousand datagrams a second, echoed; each side notes when the last one came.
struct Flow {
    stop: Arc<AtomicBool>,
    arrived: [Arc<AtomicU64>; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Flow {
    fn start(client: &Workload, server: &Workload, number: u8, clock: Instant) -> Result<Self> {
        let to = *addresses(number, 2).first().context("an address")?;
        let bind = |workload: &Workload, port: u16| {
            workload.ns.inside(move || {
                let socket = UdpSocket::bind(("::", port))?;
                socket.set_read_timeout(Some(Duration::from_millis(100)))?;
                Ok(socket)
            })
        };
        let (near, far) = (bind(client, 0)?, bind(server, PORT)?);
        let sender = near.try_clone()?;
        let stop = Arc::new(AtomicBool::new(false));
        let arrived = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let [here, there] = arrived.clone();
        let to = match to {
            std::net::IpAddr::V4(address) => SocketAddr::new(address.to_ipv6_mapped().into(), PORT),
            address => SocketAddr::new(address, PORT),
        };
        let ends = [(); 3].map(|()| Arc::clone(&stop));
        let [sending, receiving, echoing] = ends;
        let threads = vec![
            std::thread::spawn(move || {
                while !sending.load(Ordering::Relaxed) {
                    // Refused where it is cut.
                    let _ = sender.send_to(b"packet", to);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }),
            std::thread::spawn(move || {
                receive(&near, &receiving, &here, clock, |_| ());
            }),
            std::thread::spawn(move || {
                receive(&far, &echoing, &there, clock, |from| {
                    let _ = far.send_to(b"packet", from);
                });
            }),
        ];
        Ok(Self {
            stop,
            arrived,
            threads,
        })
    }

    /// When the last packet came, at both ends.
    fn last(&self) -> [Duration; 2] {
        let at = |micros: &Arc<AtomicU64>| Duration::from_micros(micros.load(Ordering::Relaxed));
        [at(&self.arrived[0]), at(&self.arrived[1])]
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there shows as a flow that never flows.
            drop(thread.join());
        }
    }
}

fn receive(
    socket: &UdpSocket,
    stop: &AtomicBool,
    arrived: &AtomicU64,
    clock: Instant,
    answer: impl Fn(SocketAddr),
) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let now = u64::try_from(clock.elapsed().as_micros()).unwrap_or(u64::MAX);
            arrived.store(now, Ordering::Relaxed);
            answer(from);
        }
    }
}
