//! Where a daemon runs: cut off from the agent in everything but the network namespace.
//!
//! Implementations put their control socket at /var/run/wireguard/NAME.sock, and nothing lets one choose. Two
//! agents in two network namespaces of one machine, each with its `hf-wg0`, would meet there. So the daemon gets
//! a mount namespace of its own in which that folder is the `wireguard` folder of the agent's run directory:
//! there the socket is found again by whoever has the run directory, and by nobody else.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::DeviceName;
use crate::Error;

/// Where implementations put their sockets: a folder of this name, in this one.
const EXPECTED: &str = "/var/run";
pub(super) const FOLDER: &str = "wireguard";

/// The command, prepared to cut every tie to the agent but the network namespace.
#[allow(unsafe_code)]
pub(super) fn command(
    program: &Path,
    name: &DeviceName,
    folder: &Path,
    log: &File,
) -> Result<Command, Error> {
    let doing = || Error::io("preparing the tunnel's daemon");
    let output = || log.try_clone().map(Stdio::from).map_err(doing());
    let place = Place::new(folder).map_err(doing())?;
    // The real path: the one that was found may lead through /run, which the daemon does not see.
    let mut command = Command::new(program.canonicalize().map_err(doing())?);
    command
        .arg0(program)
        .arg("-f")
        .arg(name.as_str())
        .env_clear()
        .env("LOG_LEVEL", "error")
        .stdin(Stdio::null())
        .stdout(output()?)
        .stderr(output()?);
    // SAFETY: between fork and exec only system calls are made, on strings made before; nothing allocates.
    unsafe {
        command.pre_exec(move || place.enter());
    }
    Ok(command)
}

/// Names for the calls between fork and exec.
struct Place {
    /// Our folder for sockets.
    folder: CString,
    /// /var/run, resolved: usually /run.
    run: CString,
    /// Where the implementation expects the folder.
    expected: CString,
}

impl Place {
    fn new(folder: &Path) -> io::Result<Self> {
        let run = Path::new(EXPECTED).canonicalize()?;
        let text =
            |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
        Ok(Self {
            folder: text(folder)?,
            expected: text(&run.join(FOLDER))?,
            run: text(&run)?,
        })
    }

    /// A session of its own, so that no terminal or process group ends it; and the mount namespace. Mounts go
    /// on to arrive from the host (slave): a network namespace that is deleted there is not kept alive here.
    fn enter(&self) -> io::Result<()> {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        use nix::sys::stat::Mode;
        use nix::unistd::{chdir, mkdir, setsid};

        setsid()?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&std::ffi::CStr>;
        mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        // Our folder may lie below /run, which is covered next: keep hold of it as the working directory.
        chdir(self.folder.as_c_str())?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some(c"tmpfs"),
            self.run.as_c_str(),
            Some(c"tmpfs"),
            flags,
            Some(c"size=64k,mode=0755"),
        )?;
        mkdir(self.expected.as_c_str(), Mode::S_IRWXU)?;
        mount(
            Some(c"."),
            self.expected.as_c_str(),
            none,
            MsFlags::MS_BIND,
            none,
        )?;
        chdir(c"/")?;
        Ok(())
    }
}
