//! `handfast ca init`: make a CA.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use handfast_ca::authority::{self, RootSource, Setup};
use ipnet::IpNet;

use super::Dir;
use super::lifetime::LifetimeArgs;
use super::root::Passphrase;

/// Make a CA: its root, its issuing CA and an empty registry; all of it, or nothing
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast ca init --trust-domain example.org --prefix-range 10.0.0.0/8 --prefix-range fd00::/16\n  handfast ca init --trust-domain example.org --prefix-range 10.0.0.0/8 --root-certificate /media/root/root.crt"
)]
pub struct InitArgs {
    #[command(flatten)]
    dir: Dir,
    /// The name of the trust domain: SPIFFE IDs begin with spiffe://<NAME>/
    #[arg(long, value_name = "NAME")]
    trust_domain: String,
    /// Nodes get the prefixes of their workloads out of these; give it again for more
    #[arg(long, value_name = "CIDR", required = true, value_parser = crate::prefix::read)]
    prefix_range: Vec<IpNet>,
    /// The name of this server among those that share the trust domain
    #[arg(long, default_value = "ca", value_name = "NAME")]
    server: String,
    /// Take this CA certificate (PEM) as the root; with its key, or with the key kept offline
    #[arg(long, value_name = "FILE")]
    root_certificate: Option<PathBuf>,
    /// The private key (PEM, PKCS#8, P-256) of --root-certificate, copied into the CA's folder
    #[arg(long, value_name = "FILE", requires = "root_certificate")]
    root_key: Option<PathBuf>,
    /// Keep the registry in this PostgreSQL database, which several servers share (postgres://USER@HOST/DATABASE);
    /// if it has a root already, this becomes a further server under it
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    #[command(flatten)]
    lifetimes: LifetimeArgs,
    #[command(flatten)]
    passphrase: Passphrase,
    /// Do nothing if the folder holds a CA already, whatever the other flags say
    #[arg(long)]
    unless_initialized: bool,
}

/// Runs the command.
pub async fn run(args: InitArgs) -> anyhow::Result<()> {
    if args.unless_initialized && authority::is_initialized(&args.dir.dir) {
        outln!("{} holds a CA already", args.dir.dir.display());
        return Ok(());
    }
    let trust_domain = authority::trust_domain(&args.trust_domain).context("no CA was made")?;
    let mut setup = Setup::new(args.dir.dir, trust_domain, args.prefix_range);
    setup.server = args.server;
    for (what, seconds) in args.lifetimes.seconds() {
        setup.lifetimes.set(what, seconds)?;
    }
    setup.passphrase_file = args.passphrase.passphrase_file;
    setup.store = args.store;
    let offline = args.root_certificate.is_some() && args.root_key.is_none();
    setup.root = match (args.root_certificate, args.root_key) {
        (Some(certificate), Some(key)) => RootSource::Disk { certificate, key },
        (Some(certificate), None) => RootSource::Offline { certificate },
        (None, _) => RootSource::Generate,
    };
    let fingerprint = authority::init(&setup).await.context("no CA was made")?;
    let dir = setup.dir.display();
    outln!("made the CA of {} in {dir}", setup.trust_domain);
    outln!("root certificate: {fingerprint}");
    if offline || setup.dir.join("request.csr").exists() {
        outln!("its issuing CA waits for the root: {dir}/request.csr");
        outln!(
            "next: where the root's key is, handfast ca root sign --dir ROOT --server {} request.csr --out issuing.crt (ROOT: the folder of root.key); here, handfast ca root install --dir {dir} issuing.crt",
            setup.server
        );
    } else {
        let passphrase = super::root::serve_option(setup.passphrase_file.as_deref());
        outln!("next: handfast ca serve --dir {dir}{passphrase}");
    }
    Ok(())
}
