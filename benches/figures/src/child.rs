//! This program again, as a CA or an agent in a process of its own: so its start and its memory can be weighed.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use handfast_agent::identity::{NodeStore, Standalone};
use handfast_ca::client::admin::Admin;
use handfast_ca::server::{Options, Server};

const ROLE: &str = "HANDFAST_FIGURES_ROLE";
const DATA: &str = "HANDFAST_FIGURES_DATA";

/// A child; it is killed when dropped.
pub struct Process(Child);

impl Process {
    /// Starts a role on a folder.
    pub fn start(role: &str, data: &Path) -> Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .env(ROLE, role)
            .env(DATA, data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("this program does not start again")?;
        Ok(Self(child))
    }

    /// Resident memory now, in MiB.
    pub fn resident_mib(&self) -> Result<f64> {
        crate::report::resident_mib_of(&self.0.id().to_string())
    }

    /// The least of some measurements, once what was needed for a moment has been given back.
    pub fn settled_mib(&self) -> Result<f64> {
        let mut least = f64::MAX;
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            least = least.min(self.resident_mib()?);
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(least)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connects to the CA that was started on a folder, as soon as it answers.
pub async fn reach(data: &Path, patience: Duration) -> Result<Admin> {
    let (socket, until) = (data.join("child.sock"), Instant::now() + patience);
    loop {
        match Admin::connect(&socket).await {
            Ok(admin) => return Ok(admin),
            Err(error) if Instant::now() > until => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Plays a role, if this process was started for one; returns only if it was not.
pub fn play() -> Result<()> {
    let (Ok(role), Some(data)) = (std::env::var(ROLE), std::env::var_os(DATA)) else {
        return Ok(());
    };
    let data = Path::new(&data).to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        match role.as_str() {
            "ca" => {
                let options = Options::new(
                    data.join("ca"),
                    "127.0.0.1:0".parse()?,
                    data.join("child.sock"),
                );
                let server = Server::bind(&options).await?;
                server.run(std::future::pending()).await?;
            }
            "agent" => {
                let agent = Standalone::start(NodeStore::open(&data)?, None)?;
                let count = data.join("count");
                loop {
                    let held = agent.workloads().counts().0;
                    std::fs::write(&count, held.to_string())?;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            other => bail!("there is no role {other}"),
        }
        Ok(())
    })?;
    std::process::exit(0)
}
