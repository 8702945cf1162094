//! The kinds of document with the fields that each has, and what to write for those that it lacks.

use crate::model::{Authentication, Kind};
use crate::read::cursor::Schema;

/// One kind of document.
pub(crate) struct Dialect {
    pub(crate) kind: Kind,
    pub(crate) name: &'static str,
    pub(crate) api_version: &'static str,
    pub(crate) spec: Schema,
    pub(crate) ingress: Schema,
    pub(crate) egress: Schema,
    pub(crate) authentication: Schema,
    pub(crate) modes: &'static [(&'static str, Authentication)],
}

type Instead = (&'static str, &'static str);

/// Kinds that exist elsewhere.
pub(crate) const OTHER_KINDS: &[Instead] = &[
    (
        "CiliumClusterwideNetworkPolicy",
        "write a HandfastPolicy without metadata.namespace, which speaks of every workload of the mesh",
    ),
    (
        "NetworkPolicy",
        "write a CiliumNetworkPolicy or a HandfastPolicy",
    ),
    ("List", ITEMS),
    ("CiliumNetworkPolicyList", ITEMS),
    ("HandfastPolicyList", ITEMS),
];

const ITEMS: &str = "write its items as documents of their own, with --- between them";

const HOST_POLICY: &str = "there are no host policies: select workloads with endpointSelector";
const DEFAULT_DENY: &str = "a direction with a rule denies what no rule allows; leave the direction that is to \
                            stay open without rules";
const ENTITIES: &str = "write reserved:host or reserved:world in an endpoint selector, or a CIDR, or leave the peers out \
                        to mean everything";
const REQUIRES: &str = "add the labels to each selector of the rules";
const NODES: &str = "write the nodes' addresses as CIDRs";
const ADDRESSES: &str = "write the addresses as CIDRs";
const SERVICES: &str = "select the workloads behind the service with toEndpoints";
const ICMPS: &str = "a rule without toPorts speaks of ICMP too";
const NO_PROOF: &str = "what is denied is asked for nothing: remove it";
const OURS: &str = "a HandfastPolicy has it";

const SPEC_REFUSED: &[Instead] = &[
    ("nodeSelector", HOST_POLICY),
    ("enableDefaultDeny", DEFAULT_DENY),
    ("policyTypes", DEFAULT_DENY),
    ("podSelector", "write endpointSelector"),
    ("log", "watch flows with `handfast observe`"),
];

const INGRESS_REFUSED: &[Instead] = &[
    ("fromEntities", ENTITIES),
    ("fromRequires", REQUIRES),
    ("fromNodes", NODES),
    ("fromGroups", ADDRESSES),
    ("icmps", ICMPS),
    ("encryption", OURS),
    ("from", "write fromEndpoints"),
    ("ports", "write toPorts"),
    ("toEndpoints", "in an ingress rule write fromEndpoints"),
    ("toCIDR", "in an ingress rule write fromCIDR"),
    ("toCIDRSet", "in an ingress rule write fromCIDRSet"),
];

const EGRESS_REFUSED: &[Instead] = &[
    ("toEntities", ENTITIES),
    ("toRequires", REQUIRES),
    ("toNodes", NODES),
    ("toGroups", ADDRESSES),
    ("toFQDNs", ADDRESSES),
    ("toServices", SERVICES),
    ("icmps", ICMPS),
    ("encryption", OURS),
    ("to", "write toEndpoints"),
    ("ports", "write toPorts"),
    ("fromEndpoints", "in an egress rule write toEndpoints"),
    ("fromCIDR", "in an egress rule write toCIDR"),
    ("fromCIDRSet", "in an egress rule write toCIDRSet"),
];

/// Deny rules are the same in every dialect, and ask nothing of a flow.
pub(crate) static INGRESS_DENY: Schema = Schema {
    known: &["fromEndpoints", "fromCIDR", "fromCIDRSet", "toPorts"],
    refused: &[
        ("authentication", NO_PROOF),
        ("encryption", NO_PROOF),
        ("fromEntities", ENTITIES),
        ("fromRequires", REQUIRES),
        ("fromNodes", NODES),
        ("fromGroups", ADDRESSES),
        ("icmps", ICMPS),
    ],
};

/// The same for the other direction.
pub(crate) static EGRESS_DENY: Schema = Schema {
    known: &["toEndpoints", "toCIDR", "toCIDRSet", "toPorts"],
    refused: &[
        ("authentication", NO_PROOF),
        ("encryption", NO_PROOF),
        ("toEntities", ENTITIES),
        ("toRequires", REQUIRES),
        ("toNodes", NODES),
        ("toGroups", ADDRESSES),
        ("toServices", SERVICES),
        ("icmps", ICMPS),
    ],
};

/// Every kind that is read.
pub(crate) static DIALECTS: [Dialect; 2] = [HANDFAST, CILIUM];

const HANDFAST: Dialect = Dialect {
    kind: Kind::HandfastPolicy,
    name: "HandfastPolicy",
    api_version: "handfast.io/v1alpha1",
    spec: Schema {
        known: &[
            "description",
            "endpointSelector",
            "ingress",
            "ingressDeny",
            "egress",
            "egressDeny",
        ],
        refused: SPEC_REFUSED,
    },
    ingress: Schema {
        known: &[
            "fromEndpoints",
            "fromCIDR",
            "fromCIDRSet",
            "toPorts",
            "authentication",
            "encryption",
        ],
        refused: INGRESS_REFUSED,
    },
    egress: Schema {
        known: &[
            "toEndpoints",
            "toCIDR",
            "toCIDRSet",
            "toPorts",
            "authentication",
            "encryption",
        ],
        refused: EGRESS_REFUSED,
    },
    authentication: Schema {
        known: &["mode", "peers", "maxAge"],
        refused: &[],
    },
    modes: &[
        ("required", Authentication::Required),
        ("audit", Authentication::Audit),
        ("disabled", Authentication::Disabled),
        ("test-always-fail", Authentication::TestAlwaysFail),
    ],
};

/// `labels` names a rule for management only; nothing is enforced by it, so it is read over.
const CILIUM: Dialect = Dialect {
    kind: Kind::CiliumNetworkPolicy,
    name: "CiliumNetworkPolicy",
    api_version: "cilium.io/v2",
    spec: Schema {
        known: &[
            "description",
            "labels",
            "endpointSelector",
            "ingress",
            "ingressDeny",
            "egress",
            "egressDeny",
        ],
        refused: SPEC_REFUSED,
    },
    ingress: Schema {
        known: &[
            "fromEndpoints",
            "fromCIDR",
            "fromCIDRSet",
            "toPorts",
            "authentication",
        ],
        refused: INGRESS_REFUSED,
    },
    egress: Schema {
        known: &[
            "toEndpoints",
            "toCIDR",
            "toCIDRSet",
            "toPorts",
            "authentication",
        ],
        refused: EGRESS_REFUSED,
    },
    authentication: Schema {
        known: &["mode"],
        refused: &[("peers", OURS), ("maxAge", OURS)],
    },
    modes: &[
        ("required", Authentication::Required),
        ("disabled", Authentication::Disabled),
        ("test-always-fail", Authentication::TestAlwaysFail),
    ],
};
