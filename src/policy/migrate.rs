//! `handfast policy migrate`: from another enforcer's policies to ours, with what changes on the way.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use handfast_policies::tools::migrate::{Enforcer, migrate};

use super::input::{self, WorkloadArgs};
use super::{Paths, diff};
use crate::output::OutputArgs;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast policy migrate --from cilium cilium/ --enforcer cilium --out migrated/\n  kubectl get ciliumnetworkpolicies --all-namespaces --output yaml | \\\n    handfast policy migrate --from cilium - --enforcer handfast --out migrated/"
)]
pub(super) struct MigrateArgs {
    /// Whose policies they are
    #[arg(long, value_enum)]
    from: From,
    /// Who allows and denies afterwards; needed, since one policy must not have two enforcers by accident
    #[arg(long, value_enum)]
    enforcer: Option<Who>,
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    workloads: WorkloadArgs,
    /// The folder to write handfast-policies.yaml and cilium-policies.yaml into; without, they are printed
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum From {
    /// CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy
    Cilium,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Who {
    /// Cilium allows and denies as before, handfast asks for proofs
    Cilium,
    /// handfast does both; Cilium's policies are to be deleted
    Handfast,
}

pub(super) fn run(args: &MigrateArgs) -> anyhow::Result<()> {
    let From::Cilium = args.from;
    let sources = input::sources(&args.paths.paths)?;
    let enforcer = args.enforcer.map(|who| match who {
        Who::Cilium => Enforcer::Cilium,
        Who::Handfast => Enforcer::Handfast,
    });
    let migration = migrate(&sources, &args.workloads.read()?, enforcer).map_err(input::all)?;
    for warning in &migration.warnings {
        eprintln!("warning: {warning}");
    }
    ensure!(
        migration.policies > 0,
        "there is no policy of Cilium's in what was read; nothing was written"
    );
    match &args.out {
        Some(folder) => {
            let mut files = vec![(folder.join("handfast-policies.yaml"), &migration.own)];
            if !migration.stripped.is_empty() {
                files.push((folder.join("cilium-policies.yaml"), &migration.stripped));
            }
            write_new(folder, &files)?;
        }
        None => {
            out!("{}", migration.own);
            if !migration.stripped.is_empty() {
                out!("# Cilium's, without authentication\n{}", migration.stripped);
            }
        }
    }
    eprintln!(
        "policies migrated: {}; verdicts that differ: {}",
        migration.policies,
        migration.changes.len()
    );
    if !migration.changes.is_empty() {
        diff::print(&migration.changes, OutputArgs::default())?;
    }
    Ok(())
}

/// Never overwrites what somebody may have changed by hand: all of them or none.
fn write_new(folder: &Path, files: &[(PathBuf, &String)]) -> anyhow::Result<()> {
    for (path, _) in files {
        ensure!(
            !path.exists(),
            "{} exists already: move it away, or name another folder; nothing was written",
            path.display()
        );
    }
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make {}; nothing was written", folder.display()))?;
    for (path, text) in files {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        file.write_all(text.as_bytes())?;
        outln!("{}", path.display());
    }
    Ok(())
}
