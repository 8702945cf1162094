//! A PostgreSQL of our own, on a Unix socket in a folder that goes when the test ends.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::unistd::User;
use tempfile::TempDir;

pub struct Postgres {
    folder: TempDir,
    programs: PathBuf,
    user: Option<(u32, u32)>,
    running: Option<Child>,
}

impl Postgres {
    /// None where PostgreSQL is not installed: the test says so and is skipped.
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!("skipped: PostgreSQL is not installed here (apt-get install postgresql)");
            return None;
        };
        // PostgreSQL does not run as root.
        let user = if nix::unistd::geteuid().is_root() {
            let user = User::from_name("postgres").unwrap()?;
            Some((user.uid.as_raw(), user.gid.as_raw()))
        } else {
            None
        };
        let folder = tempfile::Builder::new().prefix("hfpg").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut postgres = Self {
            folder,
            programs,
            user,
            running: None,
        };
        let data = postgres.data();
        std::fs::create_dir(&data).unwrap();
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(&data, Some(uid), Some(gid)).unwrap();
        }
        let made = postgres
            .command("initdb")
            .args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        postgres.start_again();
        Some(postgres)
    }

    /// Starts it, after [`Postgres::stop`] too.
    pub fn start_again(&mut self) {
        let data = self.data();
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&data)
            .args(["-h", "", "-F"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.running = Some(command.spawn().unwrap());
        let since = std::time::Instant::now();
        while since.elapsed() < Duration::from_secs(60) {
            if self.ask("postgres", "SELECT 1") {
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("PostgreSQL is not up within a minute");
    }

    /// Ends it at once, as a crash does.
    pub fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(running.id()).unwrap());
            // SIGQUIT: the server takes its own processes with it.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT);
            let _ = running.wait();
        }
    }

    /// A new database, as `--store` takes it.
    pub fn url(&self, database: &str) -> String {
        assert!(self.ask("postgres", &format!("CREATE DATABASE {database}")));
        format!(
            "postgres://postgres@localhost/{database}?host={}",
            self.data().display()
        )
    }

    /// Runs a statement; did it succeed?
    pub fn ask(&self, database: &str, statement: &str) -> bool {
        let asked = self
            .command("psql")
            .args([
                "-q", "-U", "postgres", "-d", database, "-c", statement, "-h",
            ])
            .arg(self.data())
            .output();
        asked.unwrap().status.success()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir("/").env_remove("PGPASSWORD");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    versions
        .filter_map(|version| Some(version.ok()?.path().join("bin")))
        .find(|bin| bin.join("initdb").exists())
}
