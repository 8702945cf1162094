//! The workloads that are known, and the flows that must never be cut.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use serde::Deserialize;
use spiffe::SpiffeId;

use crate::entry::Workload;
use crate::model::Protocol;
use crate::read::value;
use crate::read::yaml::{Node, Value};
use crate::set::{ReadError, Source};
use crate::tools::flow::End;

/// The most workloads that one file names.
const MAX_WORKLOADS: usize = 100_000;

/// Workloads by name, and what must go through.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The workloads, in the order of the file.
    pub(crate) workloads: Vec<Known>,
    /// Flows that handfast itself lives on.
    pub needs: Vec<Need>,
    /// TCP ports by which people administer machines.
    pub ssh_ports: Vec<u16>,
    places: Places,
}

/// Where workloads stand in the list: tens of thousands are found as soon as a few.
#[derive(Clone, Debug, Default)]
struct Places {
    names: HashMap<String, usize>,
    /// The first of each SPIFFE ID.
    ids: HashMap<String, usize>,
    /// By the hash of what they are: alike ones may have several names.
    alike: HashMap<u64, Vec<usize>>,
    addresses: HashMap<IpAddr, usize>,
    /// What is put behind a name that is taken, the next time.
    numbers: HashMap<String, u32>,
}

/// One workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What to call it: unique.
    pub name: String,
    /// Its identity and its labels.
    pub workload: Workload,
    /// Its addresses, if they are known.
    pub addresses: Vec<IpAddr>,
    /// Whether it is a machine itself, or what lets people in there: its SSH server is its own.
    pub is_machine: bool,
}

/// A flow that policies must let through without a proof: what gives proofs cannot need one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// What breaks without it, such as `agents reach the CA`.
    pub name: String,
    /// Who opens it: a name, an address, `host` or `world`.
    pub from: String,
    /// Toward whom.
    pub to: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination's port.
    pub port: u16,
}

#[derive(Deserialize)]
struct RawWorkload {
    name: Option<String>,
    #[serde(alias = "spiffe_id", rename = "spiffeId")]
    spiffe_id: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    addresses: Vec<IpAddr>,
    /// As entries have them.
    #[serde(default)]
    selectors: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNeed {
    name: String,
    #[serde(default = "host")]
    from: String,
    to: String,
    port: u16,
    #[serde(default)]
    protocol: Option<String>,
}

fn host() -> String {
    "host".to_owned()
}

impl Inventory {
    /// Reads a list of workloads (as `handfast entry list --output json` writes it, too), or a mapping with
    /// `workloads` and `needs`.
    ///
    /// # Errors
    /// Everything that is wrong, with its place.
    pub fn read(source: &Source) -> Result<Self, Vec<ReadError>> {
        let document = value::document(source).map_err(|error| vec![error])?;
        let file = &source.name;
        if matches!(document.value, Value::List(_)) {
            return Self::read_list(file, &document);
        }
        let mut inventory = (Vec::new(), Vec::new());
        for (name, node) in value::fields(file, &document, &["workloads", "needs"])? {
            match name {
                "workloads" => inventory.0 = value::typed_list(file, name, node)?,
                _ => inventory.1 = value::typed_list(file, name, node)?,
            }
        }
        Self::of(file, inventory.0, inventory.1)
    }

    /// Reads the workloads of a list.
    pub(crate) fn read_list(file: &str, list: &Node) -> Result<Self, Vec<ReadError>> {
        let raw = value::typed_list(file, "workloads", list)?;
        Self::of(file, raw, Vec::new())
    }

    fn of(
        file: &str,
        workloads: Vec<(usize, RawWorkload)>,
        needs: Vec<(usize, RawNeed)>,
    ) -> Result<Self, Vec<ReadError>> {
        let error = |line, message: String| ReadError {
            file: file.to_owned(),
            line,
            column: 1,
            field: String::new(),
            message,
        };
        if workloads.len() > MAX_WORKLOADS {
            let message = format!(
                "{} workloads, and {MAX_WORKLOADS} is the most",
                workloads.len()
            );
            return Err(vec![error(1, message)]);
        }
        let mut inventory = Self::default();
        let mut errors = Vec::new();
        for (line, raw) in workloads {
            match SpiffeId::new(raw.spiffe_id.as_str()) {
                Ok(spiffe_id) => {
                    let workload = Workload {
                        spiffe_id,
                        labels: raw.labels,
                    };
                    let selectors = raw.selectors.iter().map(String::as_str);
                    inventory.add(raw.name, workload, raw.addresses, is_machine(selectors));
                }
                Err(why) => errors.push(error(
                    line,
                    format!("{:?} is not a SPIFFE ID: {why}", raw.spiffe_id),
                )),
            }
        }
        for (line, raw) in needs {
            match protocol(raw.protocol.as_deref().unwrap_or("tcp")) {
                Ok(protocol) => inventory.needs.push(Need {
                    name: raw.name,
                    from: raw.from,
                    to: raw.to,
                    protocol,
                    port: raw.port,
                }),
                Err(why) => errors.push(error(line, why)),
            }
        }
        if errors.is_empty() {
            Ok(inventory)
        } else {
            Err(errors)
        }
    }

    /// Adds a workload; without a name it is called by the end of its SPIFFE ID. Of several of one identity with the
    /// same labels, one is kept, with all addresses.
    pub fn add(
        &mut self,
        name: Option<String>,
        workload: Workload,
        addresses: Vec<IpAddr>,
        is_machine: bool,
    ) {
        let hash = hash(&workload);
        let alike = self.places.alike.get(&hash).map_or(&[][..], Vec::as_slice);
        let is_same = |known: &Known| {
            known.workload == workload && name.as_ref().is_none_or(|name| *name == known.name)
        };
        let same = alike
            .iter()
            .copied()
            .find(|place| self.workloads.get(*place).is_some_and(is_same));
        let place = same.unwrap_or(self.workloads.len());
        for address in &addresses {
            let first = self.places.addresses.entry(*address).or_insert(place);
            *first = place.min(*first);
        }
        if let Some(known) = same.and_then(|place| self.workloads.get_mut(place)) {
            known.addresses.extend(addresses);
            known.addresses.sort_unstable();
            known.addresses.dedup();
            known.is_machine |= is_machine;
            return;
        }
        let wanted = name.unwrap_or_else(|| short_name(&workload.spiffe_id));
        let name = self.places.free(wanted);
        self.places.names.insert(name.clone(), place);
        self.places.alike.entry(hash).or_default().push(place);
        let id = workload.spiffe_id.to_string();
        self.places.ids.entry(id).or_insert(place);
        self.workloads.push(Known {
            name,
            workload,
            addresses,
            is_machine,
        });
    }

    /// The workload of that name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Known> {
        self.workloads.get(*self.places.names.get(name)?)
    }

    /// The workload behind an address.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Option<&Known> {
        self.workloads.get(*self.places.addresses.get(&address)?)
    }

    /// The workload of an identity; the first, if several have it.
    #[must_use]
    pub fn identified(&self, id: &str) -> Option<&Known> {
        self.workloads.get(*self.places.ids.get(id)?)
    }

    /// One end of a flow: `host`, `world`, an address, a workload's name or SPIFFE ID, or labels such as
    /// `app=web,tier=front` of a workload that need not exist.
    ///
    /// # Errors
    /// What was not found, and what may be written.
    pub fn end(&self, text: &str) -> Result<End, String> {
        match text {
            "host" => return Ok(End::Host),
            "world" => return Ok(End::World),
            _ => {}
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(self.at(address).map_or(End::Outside(address), Known::end));
        }
        if let Some(known) = self.named(text).or_else(|| self.identified(text)) {
            return Ok(known.end());
        }
        if let Ok(spiffe_id) = SpiffeId::new(text) {
            return Ok(End::Workload {
                name: short_name(&spiffe_id),
                workload: Workload {
                    spiffe_id,
                    labels: BTreeMap::new(),
                },
            });
        }
        if text.contains('=') {
            return self.labelled(text);
        }
        let names: Vec<_> = self
            .workloads
            .iter()
            .map(|known| known.name.as_str())
            .collect();
        let meant = match crate::read::closest(text, names) {
            Some(name) => format!("; did you mean {name}?"),
            None => String::new(),
        };
        Err(format!(
            "no workload is called {text:?}: write a name or SPIFFE ID of the workloads given, an address, host, \
             world, or labels such as app=web{meant}"
        ))
    }

    fn labelled(&self, text: &str) -> Result<End, String> {
        let labels: Option<BTreeMap<_, _>> = text
            .split(',')
            .map(|label| label.trim().split_once('='))
            .map(|label| label.map(|(key, value)| (key.to_owned(), value.to_owned())))
            .collect();
        let labels = labels.ok_or_else(|| {
            format!("{text:?} is not a list of labels such as app=web,tier=front")
        })?;
        let home = self.workloads.first();
        let home = home.map_or("example.org", |known| {
            known.workload.spiffe_id.trust_domain_name()
        });
        let spiffe_id =
            SpiffeId::new(format!("spiffe://{home}/unnamed")).map_err(|error| error.to_string())?;
        Ok(End::Workload {
            name: text.to_owned(),
            workload: Workload { spiffe_id, labels },
        })
    }
}

fn hash(workload: &Workload) -> u64 {
    let mut hasher = DefaultHasher::new();
    workload.hash(&mut hasher);
    hasher.finish()
}

impl Places {
    /// This name, or with the first number behind it that makes it nobody else's.
    fn free(&mut self, wanted: String) -> String {
        if !self.names.contains_key(&wanted) {
            return wanted;
        }
        let number = self.numbers.entry(wanted.clone()).or_insert(2);
        loop {
            let name = format!("{wanted}-{number}");
            *number += 1;
            if !self.names.contains_key(&name) {
                return name;
            }
        }
    }
}

impl Known {
    /// It as the end of a flow.
    #[must_use]
    pub fn end(&self) -> End {
        End::Workload {
            name: self.name.clone(),
            workload: self.workload.clone(),
        }
    }
}

/// Whether an entry of these selectors is for all of a machine, or for its SSH server.
#[must_use]
pub fn is_machine<'a>(mut selectors: impl Iterator<Item = &'a str>) -> bool {
    const OF_MACHINES: [&str; 5] = [
        "endpoint:host",
        "systemd:id:ssh.service",
        "systemd:id:ssh.socket",
        "systemd:id:sshd.service",
        "systemd:id:sshd.socket",
    ];
    selectors.any(|selector| OF_MACHINES.contains(&selector))
}

/// The end of a SPIFFE ID's path: what people call the workload.
#[must_use]
pub fn short_name(id: &SpiffeId) -> String {
    let path = id.path().trim_start_matches('/');
    let parts: Vec<_> = path.split('/').collect();
    match parts.as_slice() {
        // The form that Kubernetes' workloads have.
        ["ns", namespace, "sa", account] => format!("{namespace}/{account}"),
        [.., last] if !last.is_empty() => (*last).to_owned(),
        _ => id.to_string(),
    }
}

/// A protocol by its name.
///
/// # Errors
/// The names there are.
pub fn protocol(name: &str) -> Result<Protocol, String> {
    let lower = name.to_ascii_lowercase();
    let mut all = Protocol::ALL.into_iter();
    all.find(|protocol| protocol.to_string() == lower)
        .ok_or_else(|| {
            format!(
                "{name:?} is no protocol that policies know: tcp, udp, sctp, icmp, icmpv6 or any"
            )
        })
}
