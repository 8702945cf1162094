//! The very first packet between two identities arrives, whatever protocol it is of: TCP, UDP, ICMP, SCTP where the
//! kernel has it, over IPv4 and IPv6. Each is sent once, while the peer's agent cannot answer.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    listen, socket,
};
use nix::unistd::Pid;

use crate::harness::counters::Retransmissions;
use crate::harness::lab::Workload;
use crate::harness::mesh::workload_addresses;
use crate::harness::process::command;
use crate::harness::wait;
use crate::support::{self, Mesh, SOON};

const PORT: u16 = 6000;
/// How long the peer's agent stands still while a packet is held.
const STILL: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(5);

/// `client: good` may reach the server by any protocol, proven.
const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: protocols}
spec:
  endpointSelector: {matchLabels: {run: nginx}}
  ingress:
    - fromEndpoints: [{matchLabels: {client: good}}]
      authentication: {mode: required}
";

/// A protocol's first packet, sent once; it returns when the answer has come.
type First = fn(&Workload, IpAddr) -> Result<(), String>;

#[test]
fn the_first_packet_of_every_protocol_is_held_and_arrives() {
    let Some(_turn) = support::turn("held protocols") else {
        return;
    };
    let mut mesh = Mesh::start();
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    mesh.apply(POLICY);
    let _servers = serve(&server);
    let protocols: [(&str, First); 4] =
        [("tcp", tcp), ("udp", udp), ("icmp", icmp), ("sctp", sctp)];
    let mut index = 10;
    for (protocol, first) in protocols {
        if protocol == "sctp" && sctp_socket(true).is_err() {
            eprintln!("skipped: sctp: the kernel has none");
            continue;
        }
        for to in workload_addresses(2, 2) {
            index += 1;
            let peer = Pid::from_raw(mesh.n2.agent().unwrap().id().cast_signed());
            kill(peer, Signal::SIGSTOP).unwrap();
            // Identities that have not met: a client of its own for each.
            let name = format!("good{index}");
            let client = mesh.workload(&mesh.n1, &name, &["client=good"], index);
            let before = [&client, &server].map(|w| Retransmissions::read(&w.ns).unwrap());
            let held = mesh.status(&mesh.n1).packets("held");
            let outcome = std::thread::scope(|scope| {
                let sent = scope.spawn(|| first(&client, to));
                mesh.holds(&mesh.n1, held).unwrap();
                wait::pause(STILL).unwrap();
                assert!(
                    !sent.is_finished(),
                    "{protocol} to {to}: an answer without a proof"
                );
                kill(peer, Signal::SIGCONT).unwrap();
                sent.join().unwrap()
            });
            outcome
                .unwrap_or_else(|error| panic!("{protocol} to {to}: {error}\n{}", mesh.evidence()));
            for (workload, before) in [&client, &server].into_iter().zip(before) {
                let since = Retransmissions::read(&workload.ns).unwrap().since(before);
                assert_eq!(since.syn, 0, "{protocol} to {to}: sent again");
            }
        }
    }
}

/// What answers.
fn serve(server: &Workload) -> (TcpListener, Option<[OwnedFd; 2]>) {
    let echoes = server.ns.inside(|| {
        let tcp = TcpListener::bind(("::", PORT)).unwrap();
        let udp = UdpSocket::bind(("::", PORT + 1)).unwrap();
        let sctp = [true, false].map(|v4| {
            let socket = sctp_socket(v4).ok()?;
            let any: IpAddr = if v4 { "0.0.0.0" } else { "::" }.parse().unwrap();
            let port = if v4 { PORT } else { PORT + 1 };
            let at = SockaddrStorage::from(SocketAddr::new(any, port));
            bind(socket.as_raw_fd(), &at).unwrap();
            listen(&socket, Backlog::new(8).unwrap()).unwrap();
            Some(socket)
        });
        Ok((tcp, udp, sctp))
    });
    let (tcp, udp, [sctp4, sctp6]) = echoes.unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..length], from);
        }
    });
    (tcp, sctp4.zip(sctp6).map(|(v4, v6)| [v4, v6]))
}

fn tcp(client: &Workload, to: IpAddr) -> Result<(), String> {
    let connect = || {
        Ok(TcpStream::connect_timeout(
            &SocketAddr::new(to, PORT),
            PATIENCE,
        ))
    };
    let made = client.ns.inside(connect).unwrap();
    made.map(drop).map_err(|error| error.to_string())
}

fn udp(client: &Workload, to: IpAddr) -> Result<(), String> {
    let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
    let bind = || Ok(UdpSocket::bind((any, 0)).unwrap());
    let socket = client.ns.inside(bind).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let to = SocketAddr::new(to, PORT + 1);
    socket.send_to(b"once", to).map_err(|e| e.to_string())?;
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).map_err(|e| e.to_string())?;
    assert_eq!((&buffer[..length], from), (b"once".as_slice(), to));
    Ok(())
}

fn icmp(client: &Workload, to: IpAddr) -> Result<(), String> {
    let to = to.to_string();
    let mut ping = command("ping", &["-c", "1", "-W", "5", &to]);
    let said = client.place.run(&mut ping, SOON).unwrap();
    said.success("ping").map(drop).map_err(|e| e.to_string())
}

fn sctp(client: &Workload, to: IpAddr) -> Result<(), String> {
    let port = if to.is_ipv4() { PORT } else { PORT + 1 };
    let connect = || {
        let socket = sctp_socket(to.is_ipv4()).unwrap();
        let to = SockaddrStorage::from(SocketAddr::new(to, port));
        Ok(connect(socket.as_raw_fd(), &to))
    };
    let made = client.ns.inside(connect).unwrap();
    made.map_err(|errno| errno.to_string())
}

fn sctp_socket(v4: bool) -> nix::Result<OwnedFd> {
    let family = if v4 {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Sctp,
    )
}
