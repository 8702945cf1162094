//! `handfast ca root`: the steps of a root's rotation one by one, and roots whose keys are kept elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Arg, Args, Subcommand};
use handfast_ca::authority::{self, OfflineRoot};
use handfast_ca::client::rotation::NewRotation;
use handfast_ca::rotation::{Stage, What};

use super::CaSocket;
use super::rotate::{ForceArgs, WaitArgs, follow, live, show};
use crate::output::{OutputArgs, timestamp};

/// Roots: their rotation step by step, and those whose keys are kept offline
#[derive(Debug, Args)]
pub struct RootArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List roots, issuing CAs and JWT keys with their states
    List {
        #[command(flatten)]
        socket: CaSocket,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Step 1: make a new root (or bring one) and publish it; it signs nothing yet
    Prepare {
        /// Bring this root (PEM) instead of making one
        #[arg(long, value_name = "FILE")]
        root_certificate: Option<PathBuf>,
        /// Its private key (PEM), copied into the CA's folder; leave it out if it stays offline
        #[arg(long, value_name = "FILE", requires = "root_certificate")]
        root_key: Option<PathBuf>,
        /// Its key signed by the present root (PEM, from `handfast ca root cross-sign`)
        #[arg(long, value_name = "FILE", requires = "root_certificate")]
        cross_signed: Option<PathBuf>,
        /// The CA's folder, for --root-key
        #[arg(long, default_value = "/var/lib/handfast/ca", value_name = "DIR")]
        dir: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
        /// The present root's key is known to others: nothing that it signs is to be followed
        #[arg(long)]
        compromised: bool,
        /// Why; kept in the journal
        #[arg(long, value_name = "TEXT", value_parser = crate::reason::read)]
        reason: Option<String>,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        socket: CaSocket,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Step 2: the new root signs, once every agent has confirmed that it knows it
    Activate(StepArgs),
    /// Step 3: the old root's key is destroyed, once no agent hangs on it
    #[command(mut_arg("reason", needed))]
    Taint(StepArgs),
    /// Step 4: the old root leaves the bundle
    #[command(mut_arg("reason", needed))]
    Revoke(StepArgs),
    /// Make a root in a folder of its own, for a machine that serves nobody
    Create {
        /// The folder that is made
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The name of the trust domain
        #[arg(long, value_name = "NAME")]
        trust_domain: String,
        /// How long it is valid
        #[arg(long, default_value = "3650d", value_name = "TIME", value_parser = humantime::parse_duration)]
        ttl: Duration,
        #[command(flatten)]
        passphrase: Passphrase,
    },
    /// Write the request (PEM) for the CA's issuing CA, to be signed where the root's key is
    Request {
        /// The folder of a CA that has not served yet; without it the running CA is asked
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Where it is written; `-` is standard output
        #[arg(long, default_value = "-", value_name = "FILE")]
        out: PathBuf,
        /// Why; kept in the journal
        #[arg(long, value_name = "TEXT", value_parser = crate::reason::read)]
        reason: Option<String>,
        #[command(flatten)]
        socket: CaSocket,
    },
    /// Sign a request for an issuing CA with a root
    Sign {
        /// The request (PEM)
        request: PathBuf,
        /// The folder of an offline root (root.crt, root.key); without it the running CA signs, if it has the root's key
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The server that asked; stands in the certificate's name
        #[arg(long, default_value = "ca", value_name = "NAME")]
        server: String,
        /// How long the issuing CA is valid (with --dir; a running CA knows)
        #[arg(long, default_value = "90d", value_name = "TIME", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// Where the certificate is written; `-` is standard output
        #[arg(long, default_value = "-", value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
        #[command(flatten)]
        socket: CaSocket,
    },
    /// Sign a newer root with an offline root, so that agents that know only this one follow
    CrossSign {
        /// The newer root (PEM)
        certificate: PathBuf,
        /// The older root's folder (root.crt, root.key)
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Where the certificate is written; `-` is standard output
        #[arg(long, default_value = "-", value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
    },
    /// Take in the certificate (PEM) that answers a request
    Install {
        /// The certificate
        answer: PathBuf,
        /// The folder of a CA that has not served yet; without it the running CA takes it
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        #[command(flatten)]
        socket: CaSocket,
    },
}

/// The option of whatever opens a root's key.
#[derive(Clone, Debug, Default, Args)]
pub struct Passphrase {
    /// A file (mode 0600) whose first line seals the root's key
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct StepArgs {
    #[command(flatten)]
    force: ForceArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    socket: CaSocket,
    #[command(flatten)]
    output: OutputArgs,
}

/// What destroys is not done without saying why.
fn needed(reason: Arg) -> Arg {
    reason.required(true)
}

/// Runs the command.
pub async fn run(args: RootArgs) -> anyhow::Result<()> {
    match args.command {
        Command::List { socket, output } => list(&socket, output).await,
        Command::Prepare {
            root_certificate,
            root_key,
            cross_signed,
            dir,
            passphrase,
            compromised,
            reason,
            wait,
            socket,
            output,
        } => {
            let root = bring(root_certificate, root_key, cross_signed, &dir, passphrase)?;
            let order = NewRotation {
                what: What::Root,
                goal: Stage::Prepared,
                reason: reason.unwrap_or_default(),
                compromised,
                root,
            };
            let mut admin = socket.connect().await?;
            let rotation = admin.rotate(order).await.context("no root was prepared")?;
            follow(&mut admin, &rotation, Stage::Prepared, &wait, output).await
        }
        Command::Activate(args) => step(args, Stage::Prepared, Stage::Activated).await,
        Command::Taint(args) => step(args, Stage::Activated, Stage::Tainted).await,
        Command::Revoke(args) => step(args, Stage::Tainted, Stage::Revoked).await,
        Command::Create {
            dir,
            trust_domain,
            ttl,
            passphrase,
        } => create(&dir, &trust_domain, ttl, passphrase),
        Command::Request {
            dir,
            out,
            reason,
            socket,
        } => request(dir, &out, reason.as_deref(), &socket).await,
        Command::Sign {
            request,
            dir,
            server,
            ttl,
            out,
            passphrase,
            socket,
        } => {
            let path = request;
            let request = read(&path)?;
            let signed = match dir {
                Some(dir) => OfflineRoot::open(&dir, passphrase.passphrase_file)?
                    .sign(&request, &server, ttl.as_secs())
                    .with_context(|| format!("nothing was signed: {}", path.display()))?,
                None => {
                    socket
                        .connect()
                        .await?
                        .sign_issuing(&server, request)
                        .await?
                }
            };
            write(&out, &signed)?;
            eprintln!(
                "next, on the server that asked: handfast ca root install {}",
                shown(&out, "issuing.crt")
            );
            Ok(())
        }
        Command::CrossSign {
            certificate,
            dir,
            out,
            passphrase,
        } => {
            let root = OfflineRoot::open(&dir, passphrase.passphrase_file)?;
            write(&out, &root.cross_sign(&read(&certificate)?)?)
        }
        Command::Install {
            answer,
            dir,
            socket,
        } => install(&read(&answer)?, dir, &socket)
            .await
            .with_context(|| answer.display().to_string()),
    }
}

async fn list(socket: &CaSocket, output: OutputArgs) -> anyhow::Result<()> {
    let status = socket.connect().await?.rotations().await?;
    let rows = status.authorities.iter().map(|authority| {
        let short = authority.id.get(..16).unwrap_or(&authority.id);
        vec![
            short.to_owned(),
            authority.kind.clone(),
            authority.server.clone(),
            if authority.compromised {
                format!("{}, compromised", authority.state)
            } else {
                authority.state.clone()
            },
            match authority.not_after_ms {
                0 => "-".to_owned(),
                end => timestamp(end / 1000),
            },
            match (authority.key_here, authority.state.as_str()) {
                (true, _) => "here",
                (false, "tainted" | "retired") => "no longer kept",
                (false, _) => "elsewhere",
            }
            .to_owned(),
        ]
    });
    output.print(
        &status,
        &["ID", "KIND", "SERVER", "STATE", "UNTIL", "KEY"],
        rows,
    )
}

/// A root from outside: certificate and cross-signature as PEM; its key goes into the CA's folder.
fn bring(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    cross_signed: Option<PathBuf>,
    dir: &Path,
    passphrase: Passphrase,
) -> anyhow::Result<Option<(String, String)>> {
    let Some(certificate) = certificate else {
        return Ok(None);
    };
    let text = read(&certificate)?;
    let cross = cross_signed.as_deref().map(read).transpose()?;
    if let Some(key) = key {
        authority::bring_root_key(dir, &text, &key, passphrase.passphrase_file)?;
    }
    Ok(Some((text, cross.unwrap_or_default())))
}

async fn step(args: StepArgs, from: Stage, to: Stage) -> anyhow::Result<()> {
    let mut admin = args.socket.connect().await?;
    let rotation = live(&mut admin, What::Root).await?;
    if rotation.stage == to.name() {
        eprintln!(
            "the root's rotation is {} already; nothing was changed",
            to.name()
        );
        return show(&rotation, args.output);
    }
    if rotation.stage != from.name() {
        bail!(
            "the root's rotation is {}, this step follows {}; nothing was changed",
            rotation.stage,
            from.name()
        );
    }
    let reason = args.force.reason.as_deref().unwrap_or_default();
    let steered = admin
        .steer_rotation(rotation.id, to, &args.force.whom(), reason)
        .await;
    let steered = match steered {
        Ok(steered) => steered,
        // It may have gone there by itself meanwhile, as an earlier order has it.
        Err(error) => match live(&mut admin, What::Root).await {
            Ok(now) if now.stage == to.name() => now,
            _ => return Err(error.into()),
        },
    };
    follow(&mut admin, &steered, to, &args.wait, args.output).await
}

fn create(
    dir: &Path,
    trust_domain: &str,
    ttl: Duration,
    passphrase: Passphrase,
) -> anyhow::Result<()> {
    let domain = authority::trust_domain(trust_domain)?;
    let sealed = passphrase.passphrase_file.is_some();
    let root = OfflineRoot::create(dir, &domain, ttl.as_secs(), passphrase.passphrase_file)?;
    outln!("made a root of {domain} in {}", dir.display());
    outln!("root certificate: {}", root.fingerprint());
    if !sealed {
        eprintln!("its key is not sealed: --passphrase-file seals it");
    }
    outln!(
        "next: handfast ca init --trust-domain {domain} --root-certificate {} …",
        dir.join("root.crt").display()
    );
    Ok(())
}

async fn request(
    dir: Option<PathBuf>,
    out: &Path,
    reason: Option<&str>,
    socket: &CaSocket,
) -> anyhow::Result<()> {
    let (text, server) = match dir {
        Some(dir) => (authority::request(&dir).await?, "NAME".to_owned()),
        None => {
            let mut admin = socket.connect().await?;
            admin.request_issuing(reason.unwrap_or_default()).await?
        }
    };
    write(out, &text)?;
    eprintln!(
        "next, where the root's key is: handfast ca root sign --dir ROOT --server {server} {} --out issuing.crt",
        shown(out, "request.csr")
    );
    Ok(())
}

async fn install(text: &str, dir: Option<PathBuf>, socket: &CaSocket) -> anyhow::Result<()> {
    match dir {
        Some(dir) => {
            authority::install(&dir, text).await?;
            outln!("installed; next: handfast ca serve --dir {}", dir.display());
        }
        None => {
            let made = socket
                .connect()
                .await?
                .install_issuing(text.to_owned())
                .await?;
            outln!(
                "installed issuing CA {}; the rotation goes on by itself (`handfast ca status` tells)",
                made.id
            );
        }
    }
    Ok(())
}

/// What `ca serve` needs besides its folder, where a root's key is sealed.
pub fn serve_option(passphrase_file: Option<&Path>) -> String {
    let option = |file: &Path| format!(" --passphrase-file {}", file.display());
    passphrase_file.map(option).unwrap_or_default()
}

/// A file by its name; what went to standard output has none.
fn shown(out: &Path, otherwise: &str) -> String {
    match out.as_os_str() == "-" {
        true => otherwise.to_owned(),
        false => out.display().to_string(),
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Certificates and requests are no secrets.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if path.as_os_str() == "-" {
        out!("{text}");
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
