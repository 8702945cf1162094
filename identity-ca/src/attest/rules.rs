//! Which node a certificate of another CA makes its holder: rules of the operator.

use ipnet::IpNet;
use serde::Deserialize;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::bundle::Fingerprint;
use crate::registry::{NodeOrder, session_address};
use crate::{Error, NodeName};

/// One rule. It names certificates in exactly one way: by `fingerprint`, by a
/// DNS name, or by the subject's common name. In the latter two `*` stands for
/// one part without dots, which is the node's name if `node` gives none.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// `sha256:` and 64 hexadecimal digits.
    pub fingerprint: Option<String>,
    /// Such as `*.nodes.example.org`.
    pub dns: Option<String>,
    /// Such as `node-*`.
    pub common_name: Option<String>,
    /// The node.
    pub node: Option<NodeName>,
    /// Its prefixes; empty keeps what the registry says.
    pub prefixes: Vec<IpNet>,
    /// `IP` or `IP:PORT` where its sessions are reached; empty keeps what the
    /// registry says.
    pub underlay: Vec<String>,
    /// A node that is new starts as joining instead of managed.
    pub joining: bool,
}

/// The rules, checked: the first that matches counts.
pub(super) struct Rules(Vec<Checked>);

struct Checked {
    names: Names,
    node: Option<NodeName>,
    order: Rule,
}

enum Names {
    Fingerprint(Fingerprint),
    Dns(Pattern),
    CommonName(Pattern),
}

impl Rules {
    pub(super) fn check(rules: &[Rule]) -> Result<Self, Error> {
        let checked = rules.iter().enumerate().map(|(at, rule)| {
            Checked::of(rule)
                .map_err(|problem| Error::invalid(format!("x509pop rule {}", at + 1), problem))
        });
        let checked: Vec<Checked> = checked.collect::<Result<_, _>>()?;
        if checked.is_empty() {
            return Err(Error::invalid(
                "x509pop",
                "without a rule no certificate makes a node; write `nodes:` with one at least",
            ));
        }
        Ok(Self(checked))
    }

    /// The node whose certificate this is.
    pub(super) fn node(&self, der: &[u8], leaf: &X509Certificate<'_>) -> Result<NodeOrder, Error> {
        for rule in &self.0 {
            if let Some(name) = rule.matches(der, leaf)? {
                let underlay = rule.order.underlay.iter().map(|text| session_address(text));
                return Ok(NodeOrder {
                    name,
                    prefixes: rule.order.prefixes.clone(),
                    underlay: underlay.collect::<Result<_, _>>()?,
                    managed: !rule.order.joining,
                });
            }
        }
        Err(Error::Denied(
            "no rule of this CA says which node the certificate is for".to_owned(),
        ))
    }
}

impl Checked {
    fn of(rule: &Rule) -> Result<Self, String> {
        let names = match (&rule.fingerprint, &rule.dns, &rule.common_name) {
            (Some(print), None, None) => {
                Names::Fingerprint(print.parse().map_err(|error: Error| error.to_string())?)
            }
            (None, Some(dns), None) => Names::Dns(Pattern::of(&dns.to_ascii_lowercase())?),
            (None, None, Some(name)) => Names::CommonName(Pattern::of(name)?),
            _ => return Err("give one of fingerprint, dns, common_name".to_owned()),
        };
        let many =
            matches!(&names, Names::Dns(pattern) | Names::CommonName(pattern) if pattern.star);
        if rule.node.is_none() && !many {
            return Err("give node, or a * that stands for its name".to_owned());
        }
        if many && (rule.node.is_some() || !rule.prefixes.is_empty() || !rule.underlay.is_empty()) {
            return Err(
                "with a * it is for many nodes, which cannot have one name, prefixes or underlay in common".to_owned(),
            );
        }
        for underlay in &rule.underlay {
            session_address(underlay).map_err(|error| error.to_string())?;
        }
        Ok(Self {
            names,
            node: rule.node.clone(),
            order: rule.clone(),
        })
    }

    fn matches(&self, der: &[u8], leaf: &X509Certificate<'_>) -> Result<Option<NodeName>, Error> {
        let found: Vec<String> = match &self.names {
            Names::Fingerprint(print) if Fingerprint::of(der) == *print => vec![String::new()],
            Names::Fingerprint(_) => Vec::new(),
            Names::Dns(pattern) => dns_names(leaf)
                .iter()
                .filter_map(|name| pattern.matches(name))
                .collect(),
            Names::CommonName(pattern) => common_names(leaf)
                .iter()
                .filter_map(|name| pattern.matches(name))
                .collect(),
        };
        match (found.as_slice(), &self.node) {
            ([], _) => Ok(None),
            (_, Some(node)) => Ok(Some(node.clone())),
            ([name], None) => name.parse().map(Some),
            // Which of them is meant would be the holder's choice.
            (_, None) => Err(Error::Denied(
                "the certificate has several names that a rule matches".to_owned(),
            )),
        }
    }
}

/// A text with at most one `*`.
struct Pattern {
    before: String,
    after: String,
    star: bool,
}

impl Pattern {
    fn of(text: &str) -> Result<Self, String> {
        let (before, after, star) = match text.split_once('*') {
            Some((before, after)) => (before, after, true),
            None => (text, "", false),
        };
        if text.is_empty() || after.contains('*') {
            return Err(format!("{text:?} is no name with at most one *"));
        }
        Ok(Self {
            before: before.to_owned(),
            after: after.to_owned(),
            star,
        })
    }

    /// What `*` stands for; empty if there is none.
    fn matches(&self, name: &str) -> Option<String> {
        let rest = name.strip_prefix(self.before.as_str())?;
        let rest = rest.strip_suffix(self.after.as_str())?;
        let fits = if self.star {
            !rest.is_empty() && !rest.contains('.')
        } else {
            rest.is_empty()
        };
        fits.then(|| rest.to_owned())
    }
}

fn dns_names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

fn common_names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let names = leaf.subject().iter_common_name();
    names
        .filter_map(|name| name.as_str().ok().map(ToOwned::to_owned))
        .collect()
}
