//! HandfastPolicies as they are written to files, fields in the order in which people read them.

use std::collections::BTreeMap;

use serde::Serialize;

/// One document.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Written {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) metadata: Metadata,
    pub(super) spec: WrittenSpec,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Metadata {
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WrittenSpec {
    pub(super) description: String,
    pub(super) endpoint_selector: WrittenSelector,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ingress: Vec<WrittenRule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) egress: Vec<WrittenRule>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WrittenSelector {
    pub(super) match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WrittenRule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) from_endpoints: Vec<WrittenSelector>,
    #[serde(rename = "fromCIDR", skip_serializing_if = "Vec::is_empty")]
    pub(super) from_cidr: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) from_entities: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) to_endpoints: Vec<WrittenSelector>,
    #[serde(rename = "toCIDR", skip_serializing_if = "Vec::is_empty")]
    pub(super) to_cidr: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) to_entities: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) to_ports: Vec<WrittenPorts>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) icmps: Vec<WrittenMessages>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) authentication: Option<WrittenAuthentication>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct WrittenPorts {
    pub(super) ports: Vec<WrittenPort>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WrittenPort {
    pub(super) port: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) end_port: Option<u16>,
    pub(super) protocol: String,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct WrittenMessages {
    pub(super) fields: Vec<WrittenMessage>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct WrittenMessage {
    pub(super) family: &'static str,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct WrittenAuthentication {
    pub(super) mode: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) peers: Vec<String>,
}
