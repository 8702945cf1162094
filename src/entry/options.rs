//! The options of `handfast entry`: what an entry says, which entries are meant, what is changed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use clap::{ArgGroup, Args, ValueEnum};
use handfast_ca::model::{Labels, Selector};

use crate::output::OutputArgs;

/// What an entry says beside its identity and its selectors.
#[derive(Debug, Args)]
pub(super) struct Fields {
    /// Where it applies: SPIFFE ID or name of a node, SPIFFE ID of other entries (wherever those apply), or any
    #[arg(long, value_name = "PARENT")]
    pub(super) parent_id: Option<String>,
    /// A label of the identity, which policy selects by; again for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(super) label: Vec<(String, String)>,
    /// How long X.509-SVIDs for the workload itself live (15m, 2h); 1h if not given
    #[arg(long, visible_alias = "x509-svid-ttl", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) ttl: Option<Duration>,
    /// How long its JWT-SVIDs live; 5m if not given
    #[arg(long, visible_alias = "jwt-svid-ttl", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) jwt_ttl: Option<Duration>,
    /// A DNS name in certificates for the workload itself; again for more
    #[arg(long, value_name = "NAME")]
    pub(super) dns_name: Vec<String>,
    /// Tells several identities of one workload apart
    #[arg(long, value_name = "TEXT")]
    pub(super) hint: Option<String>,
    /// A trust domain whose bundle the workload gets; again for more
    #[arg(long, value_name = "DOMAIN")]
    pub(super) federates_with: Vec<String>,
    /// When it ends: a time from now (7d), or RFC 3339 (2030-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(super) expires: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only this identity
    #[arg(long, value_name = "ID")]
    pub(super) spiffe_id: Option<String>,
    /// Only those with this parent (SPIFFE ID, name of a node, or any)
    #[arg(long, value_name = "PARENT")]
    pub(super) parent_id: Option<String>,
    /// Only those with this selector; again for more
    #[arg(long, value_name = "KIND:VALUE")]
    pub(super) selector: Vec<Selector>,
    /// Only those that federate with this trust domain
    #[arg(long, value_name = "DOMAIN")]
    pub(super) federates_with: Option<String>,
    /// Only those with this hint
    #[arg(long, value_name = "TEXT")]
    pub(super) hint: Option<String>,
    /// Only those that apply to this node, by whatever parent
    #[arg(long, value_name = "NAME")]
    pub(super) node: Option<String>,
    /// Only those that have ended and are not deleted yet
    #[arg(long, conflicts_with = "expires_within")]
    pub(super) expired: bool,
    /// Only those that end within this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) expires_within: Option<Duration>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("change").required(true).multiple(true).args(CHANGES)))]
pub(super) struct Update {
    /// The entry, as `entry list` shows it
    pub(super) id: String,
    /// The identity
    #[arg(long, value_name = "ID")]
    pub(super) spiffe_id: Option<String>,
    /// All of its selectors, instead of those that it has
    #[arg(long, value_name = "KIND:VALUE")]
    pub(super) selector: Vec<Selector>,
    #[command(flatten)]
    pub(super) fields: Fields,
    /// Take something away: labels, dns-names, federates-with, hint, ttl, jwt-ttl, expires; again for more
    #[arg(long, value_name = "WHAT", value_enum)]
    pub(super) clear: Vec<Clear>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// The options of [`Update`], one of which must be there.
const CHANGES: [&str; 11] = [
    "spiffe_id",
    "selector",
    "parent_id",
    "label",
    "ttl",
    "jwt_ttl",
    "dns_name",
    "hint",
    "federates_with",
    "expires",
    "clear",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Clear {
    Labels,
    DnsNames,
    FederatesWith,
    Hint,
    Ttl,
    JwtTtl,
    Expires,
}

impl Clear {
    /// Is the same set to something by the same command?
    fn contradicts(self, fields: &Fields) -> bool {
        match self {
            Self::Labels => !fields.label.is_empty(),
            Self::DnsNames => !fields.dns_name.is_empty(),
            Self::FederatesWith => !fields.federates_with.is_empty(),
            Self::Hint => fields.hint.is_some(),
            Self::Ttl => fields.ttl.is_some(),
            Self::JwtTtl => fields.jwt_ttl.is_some(),
            Self::Expires => fields.expires.is_some(),
        }
    }
}

impl Update {
    /// What is set and taken away by one command is neither.
    pub(super) fn check(&self) -> Result<(), clap::Error> {
        let both = self
            .clear
            .iter()
            .find(|what| what.contradicts(&self.fields));
        let Some(name) = both.and_then(ValueEnum::to_possible_value) else {
            return Ok(());
        };
        Err(clap::Error::raw(
            clap::error::ErrorKind::ArgumentConflict,
            format!(
                "--clear {} cannot be used with the option that sets the same; nothing was changed\n",
                name.get_name()
            ),
        ))
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A time from now, or a moment; unix milliseconds.
fn moment(text: &str) -> Result<u64, String> {
    let at = match humantime::parse_duration(text) {
        Ok(wait) => SystemTime::now() + wait,
        Err(_) => humantime::parse_rfc3339_weak(text)
            .map_err(|_| "write a time from now (7d, 12h) or RFC 3339 (2030-01-31T12:00:00Z)")?,
    };
    Ok(unix_ms(at))
}

pub(super) fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Labels of an entry; one that is given twice says the same.
pub(super) fn labels(pairs: Vec<(String, String)>) -> anyhow::Result<Labels> {
    let mut labels = Labels::new();
    for (key, value) in pairs {
        if let Some(before) = labels.insert(key.clone(), value.clone()) {
            ensure!(
                before == value,
                "label {key} is given as {before:?} and as {value:?}; nothing was changed"
            );
        }
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        update: Update,
    }

    #[test]
    fn an_update_changes_something_and_does_not_contradict_itself() {
        let nothing = Line::try_parse_from(["update", "e1"]).unwrap_err();
        assert_eq!(
            nothing.kind(),
            clap::error::ErrorKind::MissingRequiredArgument
        );
        for good in [&["--hint", "h"][..], &["--ttl", "5m", "--clear", "jwt-ttl"]] {
            let line = Line::try_parse_from([&["update", "e1"], good].concat()).unwrap();
            line.update.check().unwrap();
        }
        for bad in [
            ["--ttl", "5m", "--clear", "ttl"],
            ["--jwt-ttl", "5m", "--clear", "jwt-ttl"],
            ["--hint", "h", "--clear", "hint"],
            ["--label", "a=b", "--clear", "labels"],
            ["--dns-name", "a.example", "--clear", "dns-names"],
            ["--federates-with", "b.example", "--clear", "federates-with"],
            ["--expires", "7d", "--clear", "expires"],
        ] {
            let line = Line::try_parse_from([&["update", "e1"][..], &bad].concat()).unwrap();
            let usage = line.update.check().unwrap_err().to_string();
            assert!(usage.contains(bad[3]), "{usage}");
        }
    }
}
