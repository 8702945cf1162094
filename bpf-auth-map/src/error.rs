//! What can go wrong between us and the kernel.

use std::{io, path::PathBuf};

/// Why something was not done. Nothing was changed unless the text says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No bpffs.
    #[error("{path} is not on a bpf file system: mount one (mount -t bpf bpf /sys/fs/bpf)")]
    NotBpffs {
        /// The directory that was asked for.
        path: PathBuf,
    },
    /// Not a control group of version 2.
    #[error(
        "{path} is not a folder of the unified control groups (version 2): \
         mount them (mount -t cgroup2 none /sys/fs/cgroup) and name a folder there"
    )]
    NotCgroup {
        /// The folder that was asked for.
        path: PathBuf,
    },
    /// This program sees a part of the control groups only.
    #[error(
        "{path} lies below a root that is not the machine's: run the agent in the machine's own cgroup namespace, \
         since sockets are told by their place below the true root"
    )]
    CgroupRoot {
        /// The folder that was asked for.
        path: PathBuf,
    },
    /// Maps of another version lie there.
    #[error(
        "{path} holds maps of layout version {found}, this program uses {wanted}: \
         run `handfast agent detach` with the program that made them; nothing was changed"
    )]
    Layout {
        /// Where.
        path: PathBuf,
        /// Version of the maps.
        found: u32,
        /// Version of this program.
        wanted: u32,
    },
    /// Files, devices, directories.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("loading the programs: {0}")]
    Load(#[from] aya::EbpfError),
    /// A program was refused or not attached.
    #[error("program {program}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why.
        source: crate::attach::AttachError,
    },
    /// A map could not be read or written.
    #[error("map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why.
        source: aya::maps::MapError,
    },
    /// The committed object and this program do not fit.
    #[error("the compiled programs have no {what} {name}")]
    Missing {
        /// Map or program.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// No such interface.
    #[error("no interface with index {0}")]
    NoInterface(u32),
    /// A limit or setting that cannot be.
    #[error("{0}")]
    Setting(&'static str),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }
}
