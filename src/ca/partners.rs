//! Options of `handfast ca serve` that concern others: who attests how, and whom it federates with.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use handfast_ca::federation::{FederationConfig, SHORTEST_REFRESH};
use handfast_ca::server::Options;
use serde::de::DeserializeOwned;

/// How nodes attest, and how our bundle reaches partners.
#[derive(Debug, Args)]
pub struct Partners {
    /// How nodes may attest beside join tokens (YAML; see docs/attestation.md)
    #[arg(long, value_name = "FILE")]
    attestation: Option<PathBuf>,
    /// The Kubernetes cluster to serve: nodes that attest by its tokens, entries for its pods, policies from its
    /// objects (YAML; see docs/kubernetes.md)
    #[arg(long, value_name = "FILE")]
    kubernetes: Option<PathBuf>,
    /// Serve our bundle to partners of a federation here, over HTTPS
    #[arg(long, value_name = "IP:PORT")]
    bundle_endpoint: Option<SocketAddr>,
    /// Show this certificate there (https_web; PEM, with --bundle-endpoint-key) instead of the CA's
    /// own X509-SVID (https_spiffe)
    #[arg(long, value_name = "FILE", requires_all = ["bundle_endpoint_key", "bundle_endpoint"])]
    bundle_endpoint_cert: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "bundle_endpoint_cert")]
    bundle_endpoint_key: Option<PathBuf>,
    /// How often partners are asked to fetch our bundle; a rotation waits three times as long for them
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = humantime::parse_duration)]
    bundle_refresh_hint: Duration,
    /// Judge partners' https_web endpoints by these roots (PEM) instead of this system's
    #[arg(long, value_name = "FILE")]
    web_roots: Option<PathBuf>,
}

impl Partners {
    /// Puts them into the server's options.
    pub fn apply(self, options: &mut Options) -> anyhow::Result<()> {
        let longest = Duration::from_secs(24 * 3600);
        if !(SHORTEST_REFRESH..=longest).contains(&self.bundle_refresh_hint) {
            anyhow::bail!(
                "--bundle-refresh-hint: from 1m to 1d, since partners ask no more often and no less"
            );
        }
        if let Some(file) = self.attestation {
            options.attestation = read(&file)?;
        }
        if let Some(file) = self.kubernetes {
            options.kubernetes = Some(read(&file)?);
        }
        options.federation = FederationConfig {
            endpoint: self.bundle_endpoint,
            web_certificate: self.bundle_endpoint_cert.zip(self.bundle_endpoint_key),
            refresh_hint: self.bundle_refresh_hint,
            web_roots: self.web_roots,
            ..FederationConfig::default()
        };
        Ok(())
    }
}

/// A file of settings (YAML).
fn read<T: DeserializeOwned>(file: &Path) -> anyhow::Result<T> {
    let what = || format!("the CA does not start: {}", file.display());
    let text = std::fs::read_to_string(file).with_context(what)?;
    serde_norway::from_str(&text).with_context(what)
}
