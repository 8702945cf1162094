//! Between the protocol's messages and values that are valid: what a message
//! says is checked once, here.

use crate::model::{
    Denial, Entry, Node, NodeObservations, ObservedPair, PolicyDocument, PolicyTrial, Selector,
    Subject, TokenRecord, TriedPolicy,
};
use crate::names::operator_id;
use crate::{Error, proto};

impl From<&Node> for proto::Node {
    fn from(node: &Node) -> Self {
        Self {
            spiffe_id: node.spiffe_id.to_string(),
            name: node.name.to_string(),
            prefixes: node.prefixes.iter().map(ToString::to_string).collect(),
            underlay: node.underlay.iter().map(ToString::to_string).collect(),
            managed: node.managed,
            assignment: node.assignment,
            joined_at_ms: node.joined_at_ms.unwrap_or(0),
            seen_at_ms: node.seen_at_ms.unwrap_or(0),
            acknowledged: node.acknowledged,
            problem: node.problem.clone(),
            revoked: node.revoked,
            evicted: node.evicted,
            banned: node.banned,
            attestation: node.attestation.clone(),
            authorities_in_use: node.authorities_in_use.clone(),
        }
    }
}

impl TryFrom<proto::Node> for Node {
    type Error = Error;

    fn try_from(node: proto::Node) -> Result<Self, Error> {
        Ok(Self {
            spiffe_id: operator_id(&node.spiffe_id)?,
            name: node.name.parse()?,
            prefixes: parsed("prefix", node.prefixes)?,
            underlay: parsed("underlay address", node.underlay)?,
            managed: node.managed,
            assignment: node.assignment,
            joined_at_ms: some(node.joined_at_ms),
            seen_at_ms: some(node.seen_at_ms),
            acknowledged: node.acknowledged,
            problem: node.problem,
            revoked: node.revoked,
            evicted: node.evicted,
            banned: node.banned,
            attestation: node.attestation,
            authorities_in_use: node.authorities_in_use,
        })
    }
}

impl From<TokenRecord> for proto::TokenRecord {
    fn from(token: TokenRecord) -> Self {
        Self {
            id: token.id.to_string(),
            node: token.node.to_string(),
            created_at_ms: token.created_at_ms,
            expires_at_ms: token.expires_at_ms,
            used_at_ms: token.used_at_ms.unwrap_or(0),
            void: token.void,
        }
    }
}

impl TryFrom<proto::TokenRecord> for TokenRecord {
    type Error = Error;

    fn try_from(token: proto::TokenRecord) -> Result<Self, Error> {
        Ok(Self {
            id: token.id.parse()?,
            node: token.node.parse()?,
            created_at_ms: token.created_at_ms,
            expires_at_ms: token.expires_at_ms,
            used_at_ms: some(token.used_at_ms),
            void: token.void,
        })
    }
}

impl From<&Entry> for proto::Entry {
    fn from(entry: &Entry) -> Self {
        Self {
            id: entry.id.clone(),
            spiffe_id: entry.spiffe_id.to_string(),
            parent_id: entry
                .parent_id
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            selectors: entry.selectors.iter().map(proto::Selector::from).collect(),
            labels: entry.labels.clone().into_iter().collect(),
            workload_ttl_seconds: entry.workload_ttl_seconds.unwrap_or(0),
            dns_names: entry.dns_names.clone(),
            created_at_ms: entry.created_at_ms,
            hint: entry.hint.clone(),
            federates_with: entry
                .federates_with
                .iter()
                .map(ToString::to_string)
                .collect(),
            expires_at_ms: entry.expires_at_ms.unwrap_or(0),
            jwt_ttl_seconds: entry.jwt_ttl_seconds.unwrap_or(0),
            revision: entry.revision,
        }
    }
}

impl TryFrom<proto::Entry> for Entry {
    type Error = Error;

    fn try_from(entry: proto::Entry) -> Result<Self, Error> {
        let parent = &entry.parent_id;
        let selectors = entry.selectors.into_iter().map(Selector::try_from);
        Ok(Self {
            id: entry.id,
            spiffe_id: operator_id(&entry.spiffe_id)?,
            parent_id: if parent.is_empty() {
                None
            } else {
                Some(operator_id(parent)?)
            },
            selectors: selectors.collect::<Result<_, _>>()?,
            labels: entry.labels.into_iter().collect(),
            workload_ttl_seconds: Some(entry.workload_ttl_seconds).filter(|ttl| *ttl > 0),
            dns_names: entry.dns_names,
            hint: entry.hint,
            federates_with: trust_domains(&entry.federates_with)?,
            jwt_ttl_seconds: Some(entry.jwt_ttl_seconds).filter(|ttl| *ttl > 0),
            expires_at_ms: some(entry.expires_at_ms),
            created_at_ms: entry.created_at_ms,
            revision: entry.revision,
        })
    }
}

/// Names of trust domains, as an operator or the CA writes them.
pub(crate) fn trust_domains(names: &[String]) -> Result<Vec<spiffe::TrustDomain>, Error> {
    let read = |name: &String| crate::authority::trust_domain(name);
    names.iter().map(read).collect()
}

impl From<&Selector> for proto::Selector {
    fn from(selector: &Selector) -> Self {
        Self {
            kind: selector.kind.clone(),
            value: selector.value.clone(),
        }
    }
}

impl TryFrom<proto::Selector> for Selector {
    type Error = Error;

    fn try_from(selector: proto::Selector) -> Result<Self, Error> {
        format!("{}:{}", selector.kind, selector.value).parse()
    }
}

impl From<&PolicyDocument> for proto::Policy {
    fn from(policy: &PolicyDocument) -> Self {
        Self {
            name: policy.name.clone(),
            text: policy.text.clone(),
            version: policy.version,
            changed_at_ms: policy.changed_at_ms,
        }
    }
}

impl From<proto::Policy> for PolicyDocument {
    fn from(policy: proto::Policy) -> Self {
        Self {
            name: policy.name,
            text: policy.text,
            version: policy.version,
            changed_at_ms: policy.changed_at_ms,
        }
    }
}

impl From<PolicyTrial> for proto::PolicyTrial {
    fn from(trial: PolicyTrial) -> Self {
        let policy = |policy: TriedPolicy| proto::TriedPolicy {
            name: policy.name,
            created: policy.created,
        };
        Self {
            number: trial.number,
            began_at_ms: trial.began_at_ms,
            deadline_ms: trial.deadline_ms,
            operator: trial.operator,
            policies: trial.policies.into_iter().map(policy).collect(),
        }
    }
}

impl From<proto::PolicyTrial> for PolicyTrial {
    fn from(trial: proto::PolicyTrial) -> Self {
        let policy = |policy: proto::TriedPolicy| TriedPolicy {
            name: policy.name,
            created: policy.created,
        };
        Self {
            number: trial.number,
            began_at_ms: trial.began_at_ms,
            deadline_ms: trial.deadline_ms,
            operator: trial.operator,
            policies: trial.policies.into_iter().map(policy).collect(),
        }
    }
}

impl From<&Denial> for proto::Denial {
    fn from(denial: &Denial) -> Self {
        use proto::denial::Subject as Wire;
        let subject = match &denial.subject {
            Subject::SpiffeId(id) => Wire::SpiffeId(id.to_string()),
            Subject::Node(name) => Wire::Node(name.to_string()),
            Subject::Serial(serial) => Wire::Serial(serial.to_string()),
        };
        Self {
            subject: Some(subject),
            reason: denial.reason.clone(),
            since_ms: denial.since_ms,
        }
    }
}

impl TryFrom<proto::Denial> for Denial {
    type Error = Error;

    fn try_from(denial: proto::Denial) -> Result<Self, Error> {
        use proto::denial::Subject as Wire;
        let subject = match denial.subject {
            Some(Wire::SpiffeId(id)) => Subject::SpiffeId(operator_id(&id)?),
            Some(Wire::Node(name)) => Subject::Node(name.parse()?),
            Some(Wire::Serial(serial)) => Subject::Serial(serial.parse()?),
            None => return Err(Error::invalid("denial", "it names nobody")),
        };
        Ok(Self {
            subject,
            reason: denial.reason,
            since_ms: denial.since_ms,
        })
    }
}

impl From<ObservedPair> for proto::ObservedPair {
    fn from(pair: ObservedPair) -> Self {
        Self {
            policy: pair.policy,
            version: pair.version,
            field: pair.field,
            source: pair.source,
            destination: pair.destination,
            flows: pair.flows,
            unproven: pair.unproven,
            proven_at_ms: pair.proven_at_ms.unwrap_or(0),
            unproven_at_ms: pair.unproven_at_ms.unwrap_or(0),
        }
    }
}

impl From<proto::ObservedPair> for ObservedPair {
    fn from(pair: proto::ObservedPair) -> Self {
        Self {
            policy: pair.policy,
            version: pair.version,
            field: pair.field,
            source: pair.source,
            destination: pair.destination,
            flows: pair.flows,
            unproven: pair.unproven,
            proven_at_ms: some(pair.proven_at_ms),
            unproven_at_ms: some(pair.unproven_at_ms),
        }
    }
}

impl From<NodeObservations> for proto::NodeObservations {
    fn from(seen: NodeObservations) -> Self {
        Self {
            node: seen.node.to_string(),
            since_ms: seen.since_ms,
            heard_at_ms: seen.heard_at_ms,
            lost: seen.lost,
            pairs: seen.pairs.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<proto::NodeObservations> for NodeObservations {
    type Error = Error;

    fn try_from(seen: proto::NodeObservations) -> Result<Self, Error> {
        Ok(Self {
            node: seen.node.parse()?,
            since_ms: seen.since_ms,
            heard_at_ms: seen.heard_at_ms,
            lost: seen.lost,
            pairs: seen.pairs.into_iter().map(Into::into).collect(),
        })
    }
}

fn parsed<T: std::str::FromStr>(what: &str, texts: Vec<String>) -> Result<Vec<T>, Error>
where
    T::Err: std::fmt::Display,
{
    let parse = |text: String| {
        text.parse()
            .map_err(|error: T::Err| Error::invalid(format!("{what} {text:?}"), error.to_string()))
    };
    texts.into_iter().map(parse).collect()
}

fn some(ms: u64) -> Option<u64> {
    Some(ms).filter(|ms| *ms > 0)
}
