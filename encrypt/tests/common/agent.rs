//! The agent process of a test: a tunnel, its routes and its nat chain, driven by lines on standard input.

use std::io::{BufRead, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use handfast_encrypt::{
    Choice, Error, Health, Ipsec, IpsecOptions, Options, Peer, PresharedKey, PublicKey,
    RouteOptions, Routes, StaticKey, Tunnel, WireGuard, nat, probe,
};

pub const RUN_DIR: &str = "HANDFAST_TEST_RUN_DIR";
pub const UNDERLAY: &str = "HANDFAST_TEST_UNDERLAY";
pub const REPLY: &str = "= ";
pub const EVENT: &str = "! ";

pub fn run() {
    let Ok(run_dir) = std::env::var(RUN_DIR) else {
        println!("skipped: only the other tests run it");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (send, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = send.send(line);
        }
    });
    runtime.block_on(async {
        let mut options = Options::new(&run_dir);
        options.underlay = vec![std::env::var(UNDERLAY).unwrap().parse().unwrap()];
        let mut ipsec = IpsecOptions::new(run_dir);
        ipsec.underlay = options.underlay.clone();
        ipsec.look = std::time::Duration::from_millis(100);
        let mut agent = TestAgent {
            options,
            ipsec,
            tunnel: None,
            former: None,
            routes: None,
        };
        while let Some(line) = lines.recv().await {
            let words: Vec<&str> = line.split_whitespace().collect();
            match agent.obey(&words).await {
                Ok(answer) => println!("\n{REPLY}ok {answer}"),
                Err(error) => println!("\n{REPLY}error {error}"),
            }
        }
    });
}

struct TestAgent {
    options: Options,
    ipsec: IpsecOptions,
    tunnel: Option<Arc<dyn Tunnel>>,
    /// The one before, while static keys change.
    former: Option<Arc<dyn Tunnel>>,
    routes: Option<Routes>,
}

impl TestAgent {
    async fn obey(&mut self, words: &[&str]) -> Result<String, Error> {
        match words {
            ["userspace"] => self.options.choice = Choice::Userspace,
            ["kernel"] => self.options.choice = Choice::Kernel,
            ["implementation", path] => self.options.implementation = Some(path.into()),
            ["name", name] => self.options.name = name.parse()?,
            ["port", port] => self.options.port = port.parse().unwrap(),
            ["open"] => {
                self.tunnel = Some(Arc::new(WireGuard::open(self.options.clone()).await?));
                return Ok(self.opened());
            }
            ["open-ipsec"] => {
                self.tunnel = Some(Arc::new(Ipsec::open(self.ipsec.clone()).await?));
                return Ok(self.opened());
            }
            // From here on the second device is the tunnel; the first goes on beside it.
            ["open-other"] => return self.open_beside(StaticKey::Fresh).await,
            // The same, to host a peer's new key under the key that this node has.
            ["open-host"] => return self.open_beside(StaticKey::Same).await,
            ["rouse", key] => self.tunnel().rouse(public_key(key)).await?,
            ["forget-former"] => {
                let former = self.former.as_ref().unwrap();
                for peer in former.status().await?.peers {
                    former.remove(peer.public_key).await?;
                }
            }
            // A peer of this device goes over to the one that was there before, which is the tunnel again.
            ["back", key] => {
                let peer = self.tunnel().installed(public_key(key)).await.unwrap();
                std::mem::swap(&mut self.tunnel, &mut self.former);
                self.tunnel().install(peer).await?;
            }
            ["detach-former"] => {
                if let Some(former) = self.former.take() {
                    former.detach().await?;
                }
            }
            ["limit", packets] => self.ipsec.life.packets = packets.parse().unwrap(),
            ["activate", key] => self.tunnel().activate(public_key(key)).await?,
            ["rotate"] => {
                let unable = self.tunnel().rotate().await?;
                return Ok(unable.len().to_string());
            }
            ["stuck"] => return Ok(self.tunnel().stuck().await?.len().to_string()),
            ["refused"] => {
                let status = self.tunnel().status().await?;
                let refused = status.peers.iter().filter_map(|peer| peer.refused_packets);
                return Ok(refused.sum::<u64>().to_string());
            }
            ["device"] => {
                let device = self.tunnel().device();
                let (index, mtu, adopted) = (device.index, device.mtu, device.adopted);
                return Ok(format!(
                    "index={index} mtu={mtu} adopted={adopted} {}",
                    device.backend
                ));
            }
            ["key"] => return Ok(hex(self.tunnel().public_key().as_bytes())),
            ["probe"] => return Ok(probe::kernel_wireguard().await?.to_string()),
            ["bind", port] => {
                let port: u16 = port.parse().unwrap();
                std::mem::forget(std::net::UdpSocket::bind(("0.0.0.0", port)).unwrap());
            }
            ["foreign-peer"] => foreign_peer(&self.options.run_dir),
            ["up"] => self.tunnel().up().await?,
            ["install", key, preshared, endpoint, prefixes] => {
                let peer = Peer {
                    number: number(prefixes),
                    public_key: public_key(key),
                    preshared_key: preshared_key(preshared),
                    endpoint: endpoint.parse().unwrap(),
                    prefixes: prefixes
                        .split(',')
                        .map(|prefix| prefix.parse().unwrap())
                        .collect(),
                };
                self.tunnel().install(peer).await?;
            }
            ["remove", key] => self.tunnel().remove(public_key(key)).await?,
            ["status"] => {
                let status = self.tunnel().status().await?;
                let peers = status.peers.iter().map(|peer| {
                    let prefixes: Vec<String> =
                        peer.prefixes.iter().map(ToString::to_string).collect();
                    let shaken = peer.last_handshake.is_some();
                    format!(
                        "peer preshared={} shaken={shaken} {}",
                        peer.preshared,
                        prefixes.join(",")
                    )
                });
                let peers: Vec<String> = peers.collect();
                return Ok(format!(
                    "port={} mark={:#x} {}",
                    status.port,
                    status.fwmark,
                    peers.join(" ")
                ));
            }
            ["routes", prefixes] => {
                if self.routes.is_none() {
                    self.routes = Some(Routes::open(RouteOptions::default()).await?);
                }
                let prefixes: Vec<_> = prefixes
                    .split(',')
                    .map(|prefix| prefix.parse().unwrap())
                    .collect();
                let index = self.tunnel().device().index;
                self.routes.as_ref().unwrap().set(index, &prefixes).await?;
            }
            ["nat"] => {
                let tunnel = self.tunnel.as_ref();
                let usual = || self.options.name.to_string();
                let device = tunnel.map_or_else(usual, |tunnel| tunnel.device().name);
                let table = nat::Table {
                    devices: vec![device.parse()?],
                    ports: vec![51872],
                    underlay: None,
                    marks: nat::Marks::default(),
                };
                nat::install(&table).await?;
            }
            ["strangers-stay-out", known] => {
                let table = nat::Table {
                    devices: Vec::new(),
                    ports: vec![51872],
                    underlay: Some(vec![known.parse().unwrap()]),
                    marks: nat::Marks::default(),
                };
                nat::install(&table).await?;
            }
            ["table"] => return Ok(nat::read().await?.len().to_string()),
            ["detach"] => {
                nat::remove().await?;
                Routes::open(RouteOptions::default())
                    .await?
                    .detach()
                    .await?;
                if self.tunnel.is_some() {
                    self.tunnel().detach().await?;
                    self.tunnel = None;
                    return Ok(String::new());
                }
                let found = WireGuard::remove_left_over(&self.options).await?;
                let ipsec = Ipsec::remove_left_over(&self.ipsec).await?;
                return Ok((found || ipsec).to_string());
            }
            other => panic!("{other:?}"),
        }
        Ok(String::new())
    }

    fn tunnel(&self) -> &Arc<dyn Tunnel> {
        self.tunnel.as_ref().expect("opened before")
    }

    async fn open_beside(&mut self, key: StaticKey) -> Result<String, Error> {
        let second = self.tunnel().beside(key).await?;
        self.former = std::mem::replace(&mut self.tunnel, second);
        Ok(self.opened())
    }

    /// Tells of the device's health from now on; the answer to opening is the node's key.
    fn opened(&self) -> String {
        let mut health = self.tunnel().watch();
        tokio::spawn(async move {
            while health.changed().await.is_ok() {
                match &*health.borrow_and_update() {
                    Health::Good => println!("\n{EVENT}good"),
                    Health::Lost { reason } => println!("\n{EVENT}lost {reason}"),
                    Health::Mended { what } => println!("\n{EVENT}mended {what}"),
                    Health::Replaced { device } => println!("\n{EVENT}replaced {}", device.index),
                }
            }
        });
        hex(self.tunnel().public_key().as_bytes())
    }
}

/// What somebody with `wg set` would do: a peer without a preshared key.
fn foreign_peer(run_dir: &Path) {
    let folder = std::fs::File::open(run_dir.join("wireguard")).unwrap();
    let socket = format!("/proc/self/fd/{}/hf-wg0.sock", folder.as_raw_fd());
    let mut stream = UnixStream::connect(socket).unwrap();
    let request = format!(
        "set=1\npublic_key={}\nallowed_ip=198.51.100.0/24\n\n",
        "22".repeat(32)
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"errno=0\n\n");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn public_key(text: &str) -> PublicKey {
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    PublicKey::new(std::array::from_fn(byte))
}

/// A peer's number: the third part of its IPv4 prefix.
fn number(prefixes: &str) -> u32 {
    prefixes.split('.').nth(2).unwrap().parse().unwrap()
}

/// A word that stands for a key.
fn preshared_key(word: &str) -> PresharedKey {
    let mut key = [7; 32];
    for (byte, letter) in key.iter_mut().zip(word.bytes()) {
        *byte = letter;
    }
    PresharedKey::new(key.into())
}
