//! Attaching and pinning: tcx where the kernel has it (6.6), clsact otherwise; first in line.
//!
//! A pin's name says what it is: `program-key-ifindex`, where the key is the endpoint or 0. A
//! pinned tcx link is the attachment. A clsact filter lives in its interface, so there the pinned
//! program is only the record of it.

use std::{fs, io, path::Path};

use aya::{
    Ebpf,
    pin::PinError,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
    },
    util::KernelVersion,
};

use crate::{
    Error, Options,
    filters::{self, Filter},
    link::Interface,
    precedence,
    programs::Programs,
    unlink,
};

/// A program and where it belongs.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) program: &'static str,
    ingress: bool,
}

impl Gate {
    pub(crate) fn direction(&self) -> TcAttachType {
        if self.ingress {
            TcAttachType::Ingress
        } else {
            TcAttachType::Egress
        }
    }
}

pub(crate) static ENDPOINT: [Gate; 2] = [
    Gate {
        program: "to_endpoint",
        ingress: false,
    },
    Gate {
        program: "from_endpoint",
        ingress: true,
    },
];
pub(crate) static TUNNEL: [Gate; 2] = [
    Gate {
        program: "to_tunnel",
        ingress: false,
    },
    Gate {
        program: "from_tunnel",
        ingress: true,
    },
];
pub(crate) static HOLD: [Gate; 2] = [
    Gate {
        program: "hold_egress",
        ingress: false,
    },
    Gate {
        program: "hold_ingress",
        ingress: true,
    },
];
pub(crate) static WIRE: [Gate; 2] = [
    Gate {
        program: "wire_egress",
        ingress: false,
    },
    Gate {
        program: "wire_ingress",
        ingress: true,
    },
];

/// Our place among clsact filters.
const PRIORITY: u16 = 1;
/// What ours are known by. Two: to come first again, a gate is for a moment there twice.
const HANDLES: [TcHandle; 2] = [TcHandle::new(0, 0x6866), TcHandle::new(0, 0x6867)];
/// Marks the record of a clsact filter.
const CLSACT: &str = "clsact";

/// Something attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the program.
    pub program: String,
    /// The endpoint, or 0.
    pub key: u32,
    /// Index of the interface.
    pub ifindex: u32,
    /// By clsact instead of tcx.
    pub clsact: bool,
}

impl Attachment {
    pub(crate) fn file(&self) -> String {
        let suffix = if self.clsact {
            format!("-{CLSACT}")
        } else {
            String::new()
        };
        format!("{}-{}-{}{suffix}", self.program, self.key, self.ifindex)
    }

    fn parse(file: &str) -> Option<Self> {
        let mut parts = file.split('-');
        let attachment = Self {
            program: parts.next()?.to_owned(),
            key: parts.next()?.parse().ok()?,
            ifindex: parts.next()?.parse().ok()?,
            clsact: match parts.next() {
                None => false,
                Some(CLSACT) => true,
                Some(_) => return None,
            },
        };
        parts.next().is_none().then_some(attachment)
    }

    /// Whether it is one of these gates.
    pub(crate) fn of(&self, gates: &[Gate]) -> bool {
        gates.iter().any(|gate| gate.program == self.program)
    }
}

/// Loads every program, for the verifier's word.
pub(crate) fn load(object: &mut Ebpf) -> Result<(), Error> {
    for gate in [&ENDPOINT, &TUNNEL, &HOLD, &WIRE].into_iter().flatten() {
        find(object, gate.program)?
            .load()
            .map_err(|source| Error::Program {
                program: gate.program,
                source: source.into(),
            })?;
    }
    Ok(())
}

/// The gate of that name.
pub(crate) fn gate(program: &str) -> Option<&'static Gate> {
    let mut all = [&ENDPOINT, &TUNNEL, &HOLD, &WIRE].into_iter().flatten();
    all.find(|gate| gate.program == program)
}

/// The gates that are attached together with one of that name.
pub(crate) fn together(program: &str) -> Option<&'static [Gate]> {
    let all = [&ENDPOINT, &TUNNEL, &HOLD, &WIRE];
    let found = all
        .into_iter()
        .find(|gates| gates.iter().any(|gate| gate.program == program));
    found.map(|gates| gates.as_slice())
}

pub(crate) fn find<'a>(
    object: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, Error> {
    object
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Missing {
            what: "program",
            name,
        })
}

/// Attaches both programs of an interface, or replaces them. Says what of the endpoint's was taken off other interfaces.
pub(crate) fn attach(
    programs: &mut Programs,
    options: &Options,
    links: &Path,
    gates: &'static [Gate],
    key: u32,
    interface: &Interface,
) -> Result<Vec<Attachment>, Error> {
    let has_tcx = KernelVersion::current().is_ok_and(|is| is >= KernelVersion::new(6, 6, 0));
    let clsact = options.clsact || !has_tcx;
    for gate in gates {
        let name = gate.program;
        let attachment = Attachment {
            program: name.to_owned(),
            key,
            ifindex: interface.index,
            clsact,
        };
        let pin = links.join(attachment.file());
        let direction = gate.direction();
        let refused = |source| Error::Program {
            program: name,
            source,
        };
        let overtaken = pin.exists()
            && precedence::is_overtaken(interface, gate, clsact, &pin).map_err(refused)?;
        let program = match overtaken && !clsact {
            true => programs.another(options, gate, interface.header_len)?,
            false => programs.get(options, gate, interface.header_len)?,
        };
        let done = if clsact {
            attach_clsact(program, interface, direction, &pin, overtaken)
        } else if overtaken {
            attach_ahead(program, interface, direction, &pin)
        } else {
            attach_tcx(program, interface, direction, &pin)
        };
        done.map_err(refused)?;
    }
    // An endpoint has one interface: what is left of another one is in nobody's way, but untidy.
    if key == 0 {
        return Ok(Vec::new());
    }
    detach(links, |other| {
        other.key == key && other.ifindex != interface.index && other.of(gates)
    })
}

/// Why a program is not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused it, or its place.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// It could not be pinned.
    #[error("pinning: {0}")]
    Pin(#[from] PinError),
    /// Its link is of another kind.
    #[error("link: {0}")]
    Link(#[from] LinkError),
    /// The pin directory or the interface is gone.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Replaces the program of a link that is pinned, or makes and pins a new one.
fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: TcAttachType,
    pin: &Path,
) -> Result<(), AttachError> {
    if let Ok(link) = PinnedLink::from_pin(pin) {
        let link: SchedClassifierLink = FdLink::from(link).try_into()?;
        // It fails where the interface went away and another has its index: then it is attached anew.
        if let Ok(id) = program.attach_to_link(link) {
            // The pin keeps the link; dropping our handle of it takes nothing away.
            program.take_link(id)?;
            return Ok(());
        }
        fs::remove_file(pin)?;
    }
    attach_first(program, interface, direction, pin)
}

/// Puts a gate first again that somebody has put a program ahead of. It comes before that one once more, and then leaves
/// its old place: for a moment both stand there, and none is a moment without.
fn attach_ahead(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: TcAttachType,
    pin: &Path,
) -> Result<(), AttachError> {
    let mut beside = pin.as_os_str().to_owned();
    beside.push("-new");
    let beside = Path::new(&beside);
    if beside.exists() {
        fs::remove_file(beside)?;
    }
    attach_first(program, interface, direction, beside)?;
    fs::rename(beside, pin)?;
    Ok(())
}

fn attach_first(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: TcAttachType,
    pin: &Path,
) -> Result<(), AttachError> {
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(&interface.name, direction, order)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin)?;
    Ok(())
}

/// Replaces our filter, or adds it: the kernel runs the one first that comes last, so one that somebody has overtaken is added
/// once more before it goes.
fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: TcAttachType,
    pin: &Path,
    overtaken: bool,
) -> Result<(), AttachError> {
    // It fails where the qdisc is there already; if it is not, the next step says why.
    let _ = qdisc_add_clsact(&interface.name);
    let ours = our_filters(interface.index, direction)?;
    let (id, former) = match ours.split_first() {
        Some((first, rest)) if !overtaken => {
            let link = filter(&interface.name, direction, *first)?;
            (program.attach_to_link(link)?, rest)
        }
        _ => {
            let free = HANDLES.into_iter().find(|handle| !ours.contains(handle));
            // Two of ours behind somebody's: the later one goes first.
            if let (None, Some(last)) = (free, ours.last()) {
                drop(filter(&interface.name, direction, *last)?);
            }
            let options = NlOptions {
                priority: PRIORITY,
                handle: free.or(ours.last().copied()).unwrap_or_default(),
                classid: None,
            };
            let options = TcAttachOptions::Netlink(options);
            let id = program.attach_with_options(&interface.name, direction, options)?;
            let former = match free {
                Some(_) => ours.as_slice(),
                None => ours.split_last().map_or(&[][..], |(_, rest)| rest),
            };
            (id, former)
        }
    };
    // Dropping the link would detach the filter.
    std::mem::forget(program.take_link(id)?);
    for handle in former {
        drop(filter(&interface.name, direction, *handle)?);
    }
    let _ = fs::remove_file(pin);
    program.pin(pin)?;
    Ok(())
}

/// Filters of ours on a hook, in the order in which they run.
fn our_filters(ifindex: u32, direction: TcAttachType) -> io::Result<Vec<TcHandle>> {
    let all = filters::list(ifindex, direction)?.into_iter();
    let handles = all.map(|filter| TcHandle::from(filter.handle));
    Ok(handles.filter(|handle| HANDLES.contains(handle)).collect())
}

/// Whether a filter of the first preference is one of ours.
pub(crate) fn is_our_filter(filter: &Filter) -> bool {
    HANDLES.contains(&TcHandle::from(filter.handle))
}

/// A filter that is there; it goes when this is dropped.
fn filter(
    name: &str,
    direction: TcAttachType,
    handle: TcHandle,
) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name, direction, PRIORITY, handle, None)
}

/// What is attached.
pub(crate) fn list(links: &Path) -> Result<Vec<Attachment>, Error> {
    let error = |source| Error::io(format!("reading {}", links.display()), source);
    let mut found = Vec::new();
    for entry in fs::read_dir(links).map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        found.extend(name.to_str().and_then(Attachment::parse));
    }
    found.sort_by(|a, b| (&a.program, a.key, a.ifindex).cmp(&(&b.program, b.key, b.ifindex)));
    Ok(found)
}

/// Detaches what matches.
pub(crate) fn detach(
    links: &Path,
    matches: impl Fn(&Attachment) -> bool,
) -> Result<Vec<Attachment>, Error> {
    let mut gone = list(links)?;
    gone.retain(matches);
    for attachment in &gone {
        let pin = links.join(attachment.file());
        if !attachment.clsact {
            // It may be off its hook already, with its interface.
            let _ = unlink::detach(&pin);
        } else if let Some(gate) = gate(&attachment.program)
            && let Ok(interface) = Interface::find(attachment.ifindex)
        {
            let direction = gate.direction();
            for handle in our_filters(attachment.ifindex, direction).unwrap_or_default() {
                drop(filter(&interface.name, direction, handle));
            }
        }
        fs::remove_file(&pin)
            .map_err(|source| Error::io(format!("removing {}", pin.display()), source))?;
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pins_name_says_what_it_is() {
        for clsact in [false, true] {
            let attachment = Attachment {
                program: "to_endpoint".into(),
                key: 7,
                ifindex: 12,
                clsact,
            };
            assert_eq!(Attachment::parse(&attachment.file()), Some(attachment));
        }
        assert_eq!(Attachment::parse("to_endpoint-7"), None);
        assert_eq!(Attachment::parse("to_endpoint-7-1-other"), None);
    }
}
