//! Gates on control groups: for workloads of the node itself, which have no interface of their own.
//!
//! Their links are pinned beside the maps as `PROGRAM-ENDPOINT` (0: for all of them), so that they outlive the agent and
//! go away with the maps.

use std::{fs, fs::File, os::unix::fs::MetadataExt, path::Path};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, links::FdLink},
};
use handfast_layout::CGROUP_ROOT;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::{AttachError, CgroupId, EndpointId, Error};

/// The gates of all host endpoints together.
const ROOT: [(&str, CgroupSkbAttachType); 2] = [
    ("to_host", CgroupSkbAttachType::Ingress),
    ("from_host", CgroupSkbAttachType::Egress),
];
/// What gives a host endpoint's sockets their address.
const SOURCES: [&str; 4] = [
    "host_connect4",
    "host_connect6",
    "host_sendmsg4",
    "host_sendmsg6",
];
/// A link always stands beside others; the kernel refuses to be told so.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;
/// The deepest that is looked for.
const MAX_LEVEL: usize = 64;

/// Finds a control group by its folder.
///
/// # Errors
/// It is no folder of the unified hierarchy (version 2), or the root of that cannot be seen from here.
pub fn find(path: &Path) -> Result<CgroupId, Error> {
    let error = |source| Error::io(format!("control group {}", path.display()), source);
    let path = fs::canonicalize(path).map_err(error)?;
    let not = || Error::NotCgroup { path: path.clone() };
    if !is_unified(&path) {
        return Err(not());
    }
    for (level, above) in path.ancestors().enumerate().take(MAX_LEVEL) {
        let id = fs::metadata(above).map_err(error)?.ino();
        if id == CGROUP_ROOT && is_unified(above) {
            return Ok(CgroupId {
                id: fs::metadata(&path).map_err(error)?.ino(),
                level: u32::try_from(level).map_err(|_| not())?,
            });
        }
        if !is_unified(above) {
            break;
        }
    }
    Err(Error::CgroupRoot { path })
}

fn is_unified(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Loads every program of these, for the verifier's word.
pub(crate) fn load(object: &mut Ebpf) -> Result<(), Error> {
    for (program, _) in ROOT {
        packets(object, program)?
            .load()
            .map_err(|source| refused(program, source))?;
    }
    for program in SOURCES {
        addresses(object, program)?
            .load()
            .map_err(|source| refused(program, source))?;
    }
    Ok(())
}

/// Guards what sockets of this node send and receive, and gives those of one group their addresses. What an earlier
/// agent has attached is replaced, without a gap.
pub(crate) fn attach(
    object: &mut Ebpf,
    pins: &Path,
    id: EndpointId,
    root: &Path,
    group: &Path,
) -> Result<(), Error> {
    let open = |path: &Path| {
        File::open(path)
            .map_err(|source| Error::io(format!("control group {}", path.display()), source))
    };
    let (root, group) = (open(root)?, open(group)?);
    for (name, direction) in ROOT {
        let program = packets(object, name)?;
        let link = (|| {
            program.load()?;
            let id = program.attach(&root, direction, MODE)?;
            program.take_link(id)?.try_into().map_err(AttachError::from)
        })();
        pin(name, link, pins, EndpointId(0))?;
    }
    for name in SOURCES {
        let program = addresses(object, name)?;
        let link = (|| {
            program.load()?;
            let id = program.attach(&group, MODE)?;
            program.take_link(id)?.try_into().map_err(AttachError::from)
        })();
        pin(name, link, pins, id)?;
    }
    Ok(())
}

/// Lets an endpoint's sockets have what addresses they like; with the last endpoint the gates go.
pub(crate) fn detach(pins: &Path, id: EndpointId, last: bool) -> Result<(), Error> {
    for name in SOURCES {
        unpin(&pins.join(format!("{name}-{id}")))?;
    }
    if last {
        for (name, _) in ROOT {
            unpin(&pins.join(format!("{name}-0")))?;
        }
    }
    Ok(())
}

/// What is attached, as people call it.
pub(crate) fn list(pins: &Path) -> Result<Vec<String>, Error> {
    let error = |source| Error::io(format!("reading {}", pins.display()), source);
    let mut found = Vec::new();
    for entry in fs::read_dir(pins).map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        let Some((program, endpoint)) = name.to_str().and_then(|name| name.split_once('-')) else {
            continue;
        };
        if ROOT.iter().any(|(root, _)| *root == program) {
            found.push(format!("program {program} of the root of control groups"));
        } else if SOURCES.contains(&program) {
            found.push(format!("program {program} of host endpoint {endpoint}"));
        }
    }
    found.sort();
    Ok(found)
}

/// The new one is at work before the old one goes.
fn pin(
    name: &'static str,
    link: Result<FdLink, AttachError>,
    pins: &Path,
    id: EndpointId,
) -> Result<(), Error> {
    let pin = pins.join(format!("{name}-{id}"));
    let error = |source| Error::Program {
        program: name,
        source,
    };
    let link = link.map_err(error)?;
    let new = pins.join(format!("{name}-{id}-new"));
    unpin(&new)?;
    link.pin(&new).map_err(|source| error(source.into()))?;
    fs::rename(&new, &pin)
        .map_err(|source| Error::io(format!("renaming {}", new.display()), source))
}

fn unpin(pin: &Path) -> Result<(), Error> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", pin.display()), source))
        }
        _ => Ok(()),
    }
}

fn refused(program: &'static str, source: aya::programs::ProgramError) -> Error {
    Error::Program {
        program,
        source: source.into(),
    }
}

fn packets<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSkb, Error> {
    object
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Missing {
            what: "program",
            name,
        })
}

fn addresses<'a>(
    object: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut CgroupSockAddr, Error> {
    object
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Missing {
            what: "program",
            name,
        })
}
