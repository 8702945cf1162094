//! Workloads of the node itself: no namespace and no link of their own, but an address, and a control group by which the
//! kernel tells their sockets.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressScope, CacheInfo,
};
use serde::{Deserialize, Serialize};

use super::EndpointError;

/// Index of the loopback interface, in every network namespace.
pub const LOOPBACK: u32 = 1;
/// Folders that are looked through for a unit's.
const MAX_FOLDERS: usize = 65_536;
/// The most exempt ports of an endpoint.
pub const MAX_EXEMPT: usize = 32;

/// Which sockets of this machine are a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// All of them.
    Machine,
    /// Those made in this control group or below it: its folder, or its path below the root.
    Path(PathBuf),
    /// Those of this systemd unit.
    Unit(String),
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => f.write_str("this machine"),
            Self::Path(path) => write!(f, "control group {}", path.display()),
            Self::Unit(unit) => write!(f, "unit {unit}"),
        }
    }
}

/// A port that may be reached whatever policy says, so that nobody locks himself out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Exempt {
    /// IP protocol: 6 or 17.
    pub protocol: u8,
    /// The endpoint's own port.
    pub port: u16,
}

impl Exempt {
    /// Whether it is this port of TCP.
    #[must_use]
    pub fn is_tcp(&self, port: u16) -> bool {
        self.protocol == 6 && self.port == port
    }
}

impl FromStr for Exempt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |port: &str| match port.parse() {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(format!("{port:?} is no port (1 to 65535)")),
        };
        match text.split_once('/') {
            Some(("tcp", number)) => Ok(Self {
                protocol: 6,
                port: port(number)?,
            }),
            Some(("udp", number)) => Ok(Self {
                protocol: 17,
                port: port(number)?,
            }),
            _ => Err("write tcp/PORT or udp/PORT, for example tcp/22".into()),
        }
    }
}

impl TryFrom<String> for Exempt {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Exempt> for String {
    fn from(exempt: Exempt) -> Self {
        exempt.to_string()
    }
}

impl fmt::Display for Exempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.protocol == 6 { "tcp" } else { "udp" };
        write!(f, "{protocol}/{}", self.port)
    }
}

/// Where a workload of the node itself is, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// As it was asked for.
    pub group: Group,
    /// The folder of its control group.
    pub folder: PathBuf,
    /// The group's path below the root, as the kernel shows it; `/` for the machine.
    pub path: String,
    /// The kernel's number of the group: one that is made anew under the same path is another one.
    pub cgroup: u64,
    /// Ports that policy does not close.
    pub exempt: Vec<Exempt>,
    /// Those of its addresses that handfast has put on the loopback interface, and takes away.
    pub placed: Vec<IpAddr>,
}

/// A group that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its folder.
    pub folder: PathBuf,
    /// Its path below the root.
    pub path: String,
}

impl Group {
    /// Finds it in the tree that is mounted at `root`.
    ///
    /// # Errors
    /// No such folder, or several that could be meant.
    pub fn find(&self, root: &Path) -> Result<Found, EndpointError> {
        let folder = match self {
            Self::Machine => root.to_owned(),
            Self::Path(path) if path.starts_with(root) => path.clone(),
            Self::Path(path) => match path.strip_prefix("/") {
                Ok(below) => root.join(below),
                Err(_) => root.join(path),
            },
            Self::Unit(unit) => find_unit(root, unit)?,
        };
        let none = |source| EndpointError::Io {
            doing: format!("find {self} ({})", folder.display()),
            source,
        };
        let folder = folder.canonicalize().map_err(none)?;
        let below = folder
            .strip_prefix(root)
            .map_err(|_| EndpointError::NoGroup {
                group: self.to_string(),
                root: root.to_owned(),
            })?;
        let path = format!("/{}", below.display());
        Ok(Found { folder, path })
    }
}

/// The one folder of a unit's name. Folders of units lie in slices; what a unit makes within its own is its affair.
fn find_unit(root: &Path, unit: &str) -> Result<PathBuf, EndpointError> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    let mut seen = 0;
    while let Some(folder) = waiting.pop() {
        // It may have gone meanwhile.
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten().filter(|e| e.path().is_dir()) {
            seen += 1;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name == unit {
                found.push(entry.path());
            } else if name.ends_with(".slice") || name.starts_with("user@") {
                waiting.push(entry.path());
            }
        }
        if seen > MAX_FOLDERS {
            break;
        }
    }
    match found.as_slice() {
        [folder] => Ok(folder.clone()),
        [] => Err(EndpointError::NoUnit(unit.to_owned())),
        several => Err(EndpointError::SeveralUnits {
            unit: unit.to_owned(),
            folders: several.to_vec(),
        }),
    }
}

/// Where the unified control groups (version 2) are mounted.
///
/// # Errors
/// Nowhere.
pub fn hierarchy() -> Result<PathBuf, EndpointError> {
    let mounts =
        std::fs::read_to_string("/proc/self/mounts").map_err(|source| EndpointError::Io {
            doing: "list mounts".into(),
            source,
        })?;
    let unified = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    });
    unified.ok_or(EndpointError::NoHierarchy)
}

/// Puts an address on the loopback interface, unless some interface has it. Whether it did.
///
/// Only who asks for the address by name gets it: it is never chosen as a source by itself, so that what the rest of
/// the machine sends is as it was.
pub async fn place(node: &Handle, address: IpAddr) -> Result<bool, EndpointError> {
    if holder(node, address).await?.is_some() {
        return Ok(false);
    }
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let mut add = node.address().add(LOOPBACK, address, bits);
    let message = add.message_mut();
    match address {
        // With the scope of the machine no other destination chooses it.
        IpAddr::V4(_) => message.header.scope = AddressScope::Host,
        IpAddr::V6(_) => {
            message.header.flags |= AddressHeaderFlags::Nodad;
            let flags = AddressFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(flags));
            // Deprecated from the beginning (RFC 6724, rule 3).
            let mut lifetimes = CacheInfo::default();
            lifetimes.ifa_preferred = 0;
            lifetimes.ifa_valid = u32::MAX;
            message
                .attributes
                .push(AddressAttribute::CacheInfo(lifetimes));
        }
    }
    add.execute()
        .await
        .map_err(netlink("give this machine the workload's address"))?;
    Ok(true)
}

/// Takes an address off the loopback interface; one that is gone already is no error.
pub async fn displace(node: &Handle, address: IpAddr) -> Result<(), EndpointError> {
    let found = listed(node).await?.into_iter();
    let mut ours = found.filter(|message| {
        message.header.index == LOOPBACK && addresses(message).any(|found| found == address)
    });
    match ours.next() {
        Some(message) => node
            .address()
            .del(message)
            .execute()
            .await
            .map_err(netlink("take the workload's address off this machine")),
        None => Ok(()),
    }
}

/// Index of the interface that has an address.
pub async fn holder(node: &Handle, address: IpAddr) -> Result<Option<u32>, EndpointError> {
    let found = listed(node).await?;
    let mut holders = found
        .iter()
        .filter(|message| addresses(message).any(|a| a == address));
    Ok(holders.next().map(|message| message.header.index))
}

type AddressMessage = rtnetlink::packet_route::address::AddressMessage;

fn addresses(message: &AddressMessage) -> impl Iterator<Item = IpAddr> + '_ {
    message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) | AddressAttribute::Local(address) => Some(*address),
            _ => None,
        })
}

async fn listed(node: &Handle) -> Result<Vec<AddressMessage>, EndpointError> {
    node.address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(netlink("list addresses"))
}

fn netlink(doing: &'static str) -> impl FnOnce(rtnetlink::Error) -> EndpointError {
    move |source| EndpointError::Netlink { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exempt_port_is_written_as_it_is_read() {
        for text in ["tcp/22", "udp/5353", "tcp/65535"] {
            assert_eq!(text.parse::<Exempt>().unwrap().to_string(), text);
        }
        for text in ["", "22", "tcp/0", "tcp/65536", "icmp/1", "tcp/", "TCP/22"] {
            assert!(text.parse::<Exempt>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_unit_is_found_by_its_name_in_whatever_slice_it_runs() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let at = root.join("system.slice/system-web.slice/web@1.service");
        std::fs::create_dir_all(at.join("web@2.service")).unwrap();
        let unit = |name: &str| Group::Unit(name.into()).find(&root);
        let found = unit("web@1.service").unwrap();
        assert_eq!(found.path, "/system.slice/system-web.slice/web@1.service");
        // What a unit makes within its own group is none.
        assert!(matches!(
            unit("web@2.service"),
            Err(EndpointError::NoUnit(_))
        ));
        std::fs::create_dir_all(root.join("user.slice/web@1.service")).unwrap();
        let several = unit("web@1.service").unwrap_err().to_string();
        assert!(several.contains("user.slice"), "{several}");
    }

    #[test]
    fn a_path_that_leads_out_of_the_tree_is_refused() {
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path().canonicalize().unwrap().join("root");
        std::fs::create_dir_all(root.join("a")).unwrap();
        let path = |path: &str| Group::Path(path.into()).find(&root);
        assert_eq!(path("/a").unwrap().path, "/a");
        assert_eq!(path("a").unwrap().path, "/a");
        assert_eq!(Group::Machine.find(&root).unwrap().path, "/");
        assert!(matches!(
            path("/a/../.."),
            Err(EndpointError::NoGroup { .. })
        ));
        assert!(path("/missing").is_err());
    }
}
