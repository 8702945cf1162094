//! The way in: pinned maps, created or adopted, and the gates attached to interfaces.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError, MapInfo, RingBuf},
};
use handfast_layout::LAYOUT_VERSION;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::{
    EndpointId, Error, Events, Preceded, Settings, Tables, attach, attach::Attachment, cgroup,
    link::Interface, loader, precedence, programs::Programs,
};

/// Directory of pinned links below the maps' directory.
const LINKS: &str = "links";

/// Where and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory on a bpffs for maps and links; made if it is missing. One agent each.
    pub bpf_dir: PathBuf,
    /// Sizes of the maps, when they are created.
    pub sizes: Sizes,
    /// Attach by clsact even where the kernel has tcx.
    pub clsact: bool,
}

impl Options {
    /// In this directory, with the usual sizes.
    pub fn new(bpf_dir: impl Into<PathBuf>) -> Self {
        Self {
            bpf_dir: bpf_dir.into(),
            sizes: Sizes::default(),
            clsact: false,
        }
    }
}

/// Sizes of the maps that cost memory when they are created.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Flows: about 100 bytes each.
    pub connections: u32,
    /// Bytes of the event ring: a power of two, at least a page.
    pub events: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            connections: 131_072,
            events: 1 << 20,
        }
    }
}

/// The datapath of this node.
pub struct Kernel {
    options: Options,
    tables: Tables,
    events: Mutex<Option<RingBuf<MapData>>>,
    programs: Mutex<Programs>,
    adopted: bool,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Sizes {
    /// Those of the maps that lie in a directory: they cannot be changed any more.
    fn of(directory: &Path) -> Result<Self, Error> {
        let size = |map: &'static str| {
            MapInfo::from_pin(directory.join(map))
                .map(|info| info.max_entries())
                .map_err(|source| Error::Map { map, source })
        };
        Ok(Self {
            connections: size("connections")?,
            events: size("events")?,
        })
    }
}

impl Kernel {
    /// Creates the pinned maps, or adopts those that are there. What is attached goes on as it is.
    ///
    /// # Errors
    /// No bpffs, maps of another layout, or the kernel refused; then nothing was changed.
    pub fn open(options: Options) -> Result<Self, Error> {
        make_directory(&options.bpf_dir)?;
        let adopted = adoptable(&options.bpf_dir)?;
        let mut options = options;
        if adopted {
            options.sizes = Sizes::of(&options.bpf_dir)?;
        }
        let mut object = loader::load(&options, 0)?;
        let tables = Tables::take(&mut object)?;
        if !adopted {
            tables.set_settings(&Settings::default())?;
            // Last: a directory without the version is one whose making was cut short.
            record_version(&mut object)?;
        }
        let events = object
            .take_map("events")
            .ok_or(Error::Missing {
                what: "map",
                name: "events",
            })
            .and_then(|map| {
                RingBuf::try_from(map).map_err(|source| Error::Map {
                    map: "events",
                    source,
                })
            })?;
        Ok(Self {
            options,
            tables,
            events: Mutex::new(Some(events)),
            programs: Mutex::default(),
            adopted,
        })
    }

    /// Whether an earlier agent's maps were found and adopted.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// The tables.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// What the programs tell. There is one reader: the second call finds nothing.
    ///
    /// # Errors
    /// Not in a tokio runtime with I/O.
    pub fn events(&self) -> Result<Option<Events>, Error> {
        let ring = self
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        ring.map(Events::new).transpose()
    }

    /// Guards an endpoint by its host-side interface. Done before the workload may use it. If it
    /// is guarded already, the programs are replaced without a gap.
    ///
    /// # Errors
    /// No such interface, or the kernel refused; then it is not guarded, or as it was.
    pub fn attach_endpoint(&self, id: EndpointId, ifindex: u32) -> Result<(), Error> {
        self.tables.set_interface(ifindex, id)?;
        for gone in self.attach(&attach::ENDPOINT, id, ifindex)? {
            self.tables.remove_interface(gone.ifindex)?;
        }
        Ok(())
    }

    /// Takes an endpoint's gates away.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn detach_endpoint(&self, id: EndpointId) -> Result<(), Error> {
        let gone = attach::detach(&self.links(), |name| {
            name.key == id.0 && name.of(&attach::ENDPOINT)
        })?;
        for gone in gone {
            self.tables.remove_interface(gone.ifindex)?;
        }
        Ok(())
    }

    /// Guards a workload of the node itself, whose sockets are those of a control group and which has these addresses
    /// (entered in [`Tables::set_host`] apart). `root` is where the root of control groups is mounted.
    ///
    /// # Errors
    /// No such group, or the kernel refused; what was attached before then stands.
    pub fn attach_host(
        &self,
        id: EndpointId,
        root: &Path,
        group: &Path,
        addresses: &[IpAddr],
    ) -> Result<(), Error> {
        let mut object = loader::load_host(&self.options, addresses)?;
        cgroup::attach(&mut object, &self.options.bpf_dir, id, root, group)
    }

    /// Takes away what was attached for a workload of the node itself; with the last one the gates that all have.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn detach_host(&self, id: EndpointId) -> Result<(), Error> {
        self.tables.remove_host(id)?;
        let last = self.tables.hosts()?.is_empty();
        cgroup::detach(&self.options.bpf_dir, id, last)
    }

    /// Guards a tunnel device, and enters it in the settings: as the second one if another that
    /// still exists is the first.
    ///
    /// # Errors
    /// As [`Kernel::attach_endpoint`].
    pub fn attach_tunnel(&self, ifindex: u32) -> Result<(), Error> {
        self.attach(&attach::TUNNEL, EndpointId(0), ifindex)?;
        let mut settings = self.tables.settings()?;
        match settings.tunnel {
            Some(first) if first != ifindex && Interface::find(first).is_ok() => {
                settings.tunnel2 = Some(ifindex);
            }
            _ => settings.tunnel = Some(ifindex),
        }
        self.tables.set_settings(&settings)
    }

    /// Takes a tunnel device's gates away. What is still held for it is lost.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn detach_tunnel(&self, ifindex: u32) -> Result<(), Error> {
        let mut settings = self.tables.settings()?;
        settings.tunnel = settings.tunnel.filter(|index| *index != ifindex);
        settings.tunnel2 = settings.tunnel2.filter(|index| *index != ifindex);
        self.tables.set_settings(&settings)?;
        attach::detach(&self.links(), |name| {
            name.ifindex == ifindex && name.of(&attach::TUNNEL)
        })
        .map(drop)
    }

    /// Makes a device the hold device: from then on the gates hold what is undecided.
    ///
    /// # Errors
    /// As [`Kernel::attach_endpoint`].
    pub fn attach_hold(&self, ifindex: u32) -> Result<(), Error> {
        self.attach(&attach::HOLD, EndpointId(0), ifindex)?;
        let settings = Settings {
            hold: Some(ifindex),
            ..self.tables.settings()?
        };
        self.tables.set_settings(&settings)
    }

    /// Puts the tripwire on an underlay or overlay interface.
    ///
    /// # Errors
    /// As [`Kernel::attach_endpoint`].
    pub fn attach_wire(&self, ifindex: u32) -> Result<(), Error> {
        self.attach(&attach::WIRE, EndpointId(0), ifindex).map(drop)
    }

    /// Takes the tripwire off an interface.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn detach_wire(&self, ifindex: u32) -> Result<(), Error> {
        attach::detach(&self.links(), |name| {
            name.ifindex == ifindex && name.of(&attach::WIRE)
        })
        .map(drop)
    }

    /// What is attached.
    ///
    /// # Errors
    /// The directory could not be read.
    pub fn attached(&self) -> Result<Vec<Attachment>, Error> {
        attach::list(&self.links())
    }

    /// Puts gates first on their hooks again that somebody's program runs ahead of, or that are gone from there. Says which
    /// were; with the reason for each that could not be helped.
    ///
    /// # Errors
    /// What is attached could not be listed.
    pub fn put_first(&self) -> Result<Vec<(Preceded, Option<Error>)>, Error> {
        let preceded = precedence::look(&self.links())?;
        let mut done = Vec::new();
        for found in preceded {
            let Attachment { key, ifindex, .. } = found.attachment;
            let put = match attach::together(&found.attachment.program) {
                Some(gates) => self.attach(gates, EndpointId(key), ifindex).map(drop),
                None => Ok(()),
            };
            done.push((found, put.err()));
        }
        Ok(done)
    }

    /// Takes every program and map away, and says what. Traffic goes on, unguarded.
    ///
    /// # Errors
    /// A pin could not be removed; those before it are.
    pub fn detach_all(&self) -> Result<Vec<String>, Error> {
        Self::detach_dir(&self.options.bpf_dir)
    }

    /// The same for what any agent left in a directory, of whatever layout.
    ///
    /// # Errors
    /// A pin could not be removed; those before it are.
    pub fn detach_dir(bpf_dir: &Path) -> Result<Vec<String>, Error> {
        if !bpf_dir.join(LINKS).is_dir() {
            return Ok(Vec::new());
        }
        let mut removed: Vec<String> = attach::detach(&bpf_dir.join(LINKS), |_| true)?
            .iter()
            .map(|gone| format!("program {} of interface {}", gone.program, gone.ifindex))
            .collect();
        removed.extend(cgroup::list(bpf_dir)?);
        removed.push(format!(
            "{} pins in {}",
            remove_pins(bpf_dir)?,
            bpf_dir.display()
        ));
        Ok(removed)
    }

    fn links(&self) -> PathBuf {
        self.options.bpf_dir.join(LINKS)
    }

    fn attach(
        &self,
        gates: &'static [attach::Gate],
        id: EndpointId,
        ifindex: u32,
    ) -> Result<Vec<Attachment>, Error> {
        let interface = Interface::find(ifindex)?;
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        attach::attach(
            &mut programs,
            &self.options,
            &self.links(),
            gates,
            id.0,
            &interface,
        )
    }
}

/// Whether this kernel takes our maps and every program. Nothing is left behind.
///
/// # Errors
/// What it refused, and why.
pub fn probe() -> Result<(), Error> {
    let mut options = Options::new(format!("/sys/fs/bpf/handfast-probe-{}", std::process::id()));
    options.sizes = Sizes {
        connections: 64,
        events: 4096,
    };
    make_directory(&options.bpf_dir)?;
    let loaded = loader::load(&options, 0).and_then(|mut object| {
        attach::load(&mut object)?;
        cgroup::load(&mut object)
    });
    remove_pins(&options.bpf_dir).and(loaded)
}

/// Makes the directory, if what is above it is a bpffs.
fn make_directory(path: &Path) -> Result<(), Error> {
    let not_bpffs = || Error::NotBpffs {
        path: path.to_owned(),
    };
    let above = path
        .ancestors()
        .find(|above| above.exists())
        .ok_or_else(not_bpffs)?;
    match statfs(above) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => {}
        _ => return Err(not_bpffs()),
    }
    fs::create_dir_all(path.join(LINKS))
        .map_err(|source| Error::io(format!("making {}", path.display()), source))
}

/// Whether maps lie here that can be adopted. Those of a making that was cut short are removed:
/// nothing can be attached to them yet.
fn adoptable(path: &Path) -> Result<bool, Error> {
    let pin = path.join("layout");
    if !pin.exists() {
        return Ok(false);
    }
    let error = |source| Error::Map {
        map: "layout",
        source,
    };
    let map = MapData::from_pin(&pin).map_err(error)?;
    let map = Array::<_, u32>::try_from(Map::Array(map)).map_err(error)?;
    match map.get(&0, 0).map_err(error)? {
        LAYOUT_VERSION => Ok(true),
        0 => remove_pins(path)
            .and_then(|_| make_directory(path))
            .map(|()| false),
        found => Err(Error::Layout {
            path: path.to_owned(),
            found,
            wanted: LAYOUT_VERSION,
        }),
    }
}

fn record_version(object: &mut Ebpf) -> Result<(), Error> {
    let error = |source: MapError| Error::Map {
        map: "layout",
        source,
    };
    let map = object.map_mut("layout").ok_or(Error::Missing {
        what: "map",
        name: "layout",
    })?;
    let mut map = Array::<_, u32>::try_from(map).map_err(error)?;
    map.set(0, LAYOUT_VERSION, 0).map_err(error)
}

/// Removes pinned maps and the directories. How many maps.
fn remove_pins(path: &Path) -> Result<usize, Error> {
    let error = |source| Error::io(format!("removing {}", path.display()), source);
    let mut removed = 0;
    for entry in fs::read_dir(path).map_err(error)? {
        let entry = entry.map_err(error)?;
        if entry.file_type().map_err(error)?.is_file() {
            fs::remove_file(entry.path()).map_err(error)?;
            removed += 1;
        }
    }
    fs::remove_dir(path.join(LINKS))
        .or_else(absent)
        .map_err(error)?;
    fs::remove_dir(path).map_err(error)?;
    Ok(removed)
}

fn absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}
