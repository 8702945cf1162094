//! `handfast cni`: this program as a CNI plugin, and its place in the node's CNI configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use handfast_agent::cni::{self, CniError, Installed, PLUGIN};

/// Pods of Kubernetes: the plugin that gates their links, and its place in the node's CNI configuration
#[derive(Debug, Args)]
pub struct CniArgs {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy this program where the runtime finds plugins, and put it behind the others of the node's list
    ///
    /// The agent does the same by itself if it is run with --cni-conf-dir. Without a running agent no pod starts from
    /// then on.
    Install {
        #[command(flatten)]
        place: Place,
        /// The agent's socket, which the plugin asks
        #[arg(long, default_value = "/run/handfast/admin.sock", value_name = "PATH")]
        admin_socket: PathBuf,
    },
    /// Take the plugin out of the node's CNI configuration; pods that run are not touched
    Remove {
        #[command(flatten)]
        place: Place,
    },
}

/// Where the runtime looks.
#[derive(Debug, Args)]
struct Place {
    /// The folder with the runtime's network configuration
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    conf_dir: PathBuf,
    /// The folder with the runtime's plugins
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    bin_dir: PathBuf,
}

impl CniArgs {
    /// True without a command: then a runtime has called.
    pub fn is_plugin(&self) -> bool {
        self.command.is_none()
    }
}

/// Runs a command.
pub fn run(args: CniArgs) -> anyhow::Result<()> {
    match args.command {
        None => {}
        Some(Command::Install {
            place,
            admin_socket,
        }) => {
            let program = cni::place_program(&place.bin_dir).with_context(|| {
                format!("cannot put the plugin into {}", place.bin_dir.display())
            })?;
            let (list, outcome) = cni::install(&place.conf_dir, &admin_socket)?;
            outln!("{} is there", program.display());
            match outcome {
                Installed::Added => {
                    outln!("{PLUGIN} was put behind the others in {}", list.display())
                }
                Installed::Unchanged => outln!("{PLUGIN} stood in {} already", list.display()),
            }
        }
        Some(Command::Remove { place }) => {
            let lists = cni::remove(&place.conf_dir)?;
            for list in &lists {
                outln!("{PLUGIN} was taken out of {}", list.display());
            }
            if lists.is_empty() {
                outln!("{PLUGIN} stood in no list of {}", place.conf_dir.display());
            }
            cni::remove_program(&place.bin_dir)
                .with_context(|| format!("cannot clear {}", place.bin_dir.display()))?;
        }
    }
    Ok(())
}

/// True if a runtime has called this program by the plugin's name.
pub fn is_called() -> bool {
    let name = std::env::args_os().next().map(PathBuf::from);
    let name = name.as_deref().and_then(|path| path.file_name());
    name.is_some_and(|name| name == PLUGIN)
}

/// Answers a runtime in its own form: a result or an error on standard output.
pub fn as_plugin() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let answer = match runtime {
        Ok(runtime) => runtime.block_on(cni::run(std::env::vars(), std::io::stdin().lock())),
        Err(error) => Err(CniError::io(format!("no runtime: {error}"))),
    };
    match answer {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => {
            outln!("{result}");
            match crate::output::finish() {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            outln!("{}", error.to_json());
            ExitCode::FAILURE
        }
    }
}
