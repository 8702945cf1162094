//! The kinds of document with the fields that each has, and what to write for those that it lacks.

use crate::model::{Authentication, Kind};
use crate::read::shape::{Field, Instead, Item, Schema, Shape, field};
use crate::read::{authentication, icmps, kubernetes, peers, ports, rule, selector};

/// One kind of document.
pub(crate) struct Dialect {
    pub(crate) kind: Kind,
    pub(crate) name: &'static str,
    pub(crate) api_version: &'static str,
    pub(crate) about: &'static str,
    pub(crate) spec: &'static Schema,
    /// How rules are written; `None` for a NetworkPolicy, which has a reader of its own.
    pub(crate) rules: Option<Rules>,
}

/// The four lists of rules.
pub(crate) struct Rules {
    pub(crate) ingress: &'static Schema,
    pub(crate) egress: &'static Schema,
    pub(crate) authentication: &'static Schema,
    pub(crate) modes: &'static [(&'static str, Authentication)],
}

/// Kinds that exist elsewhere.
pub(crate) const OTHER_KINDS: &[Instead] = &[
    ("List", ITEMS),
    ("CiliumNetworkPolicyList", ITEMS),
    ("CiliumClusterwideNetworkPolicyList", ITEMS),
    ("NetworkPolicyList", ITEMS),
    ("HandfastPolicyList", ITEMS),
    (
        "CiliumCIDRGroup",
        "write its prefixes into the policies that refer to it",
    ),
    (
        "AdminNetworkPolicy",
        "write a CiliumClusterwideNetworkPolicy, or a HandfastPolicy without a namespace",
    ),
    (
        "BaselineAdminNetworkPolicy",
        "write a CiliumClusterwideNetworkPolicy, or a HandfastPolicy without a namespace",
    ),
];

const ITEMS: &str =
    "as a list it has apiVersion, kind, metadata and items, and is in no other list";

const HOST_POLICY: &str = "there are no host policies: select workloads with endpointSelector";
const POLICY_TYPES: &str =
    "a direction with a rule denies what no rule allows; to change that, write enableDefaultDeny";
const REQUIRES: &str = "add the labels to each selector of the rules";
const NODES: &str = "write the nodes' addresses as CIDRs";
const ADDRESSES: &str = "write the addresses as CIDRs";
const SERVICES: &str = "select the workloads behind the service with toEndpoints";
const NO_PROOF: &str = "what is denied is asked for nothing: remove it";
pub(crate) const OURS: &str = "a HandfastPolicy has it";

const SPEC_REFUSED: &[Instead] = &[
    ("nodeSelector", HOST_POLICY),
    ("policyTypes", POLICY_TYPES),
    ("podSelector", "write endpointSelector"),
    ("log", "watch flows with `handfast observe`"),
];

const INGRESS_REFUSED: &[Instead] = &[
    ("fromRequires", REQUIRES),
    ("fromNodes", NODES),
    ("fromGroups", ADDRESSES),
    ("encryption", OURS),
    ("from", "write fromEndpoints"),
    ("ports", "write toPorts"),
    ("toEndpoints", "in an ingress rule write fromEndpoints"),
    ("toEntities", "in an ingress rule write fromEntities"),
    ("toCIDR", "in an ingress rule write fromCIDR"),
    ("toCIDRSet", "in an ingress rule write fromCIDRSet"),
];

const EGRESS_REFUSED: &[Instead] = &[
    ("toRequires", REQUIRES),
    ("toNodes", NODES),
    ("toGroups", ADDRESSES),
    ("toFQDNs", ADDRESSES),
    ("toServices", SERVICES),
    ("encryption", OURS),
    ("to", "write toEndpoints"),
    ("ports", "write toPorts"),
    ("fromEndpoints", "in an egress rule write toEndpoints"),
    ("fromEntities", "in an egress rule write toEntities"),
    ("fromCIDR", "in an egress rule write toCIDR"),
    ("fromCIDRSet", "in an egress rule write toCIDRSet"),
];

const DENY_REFUSED: &[Instead] = &[
    ("authentication", NO_PROOF),
    ("encryption", NO_PROOF),
    ("fromRequires", REQUIRES),
    ("fromNodes", NODES),
    ("fromGroups", ADDRESSES),
    ("toRequires", REQUIRES),
    ("toNodes", NODES),
    ("toGroups", ADDRESSES),
    ("toServices", SERVICES),
];

const FROM_ENDPOINTS: Field = field(
    "fromEndpoints",
    Shape::List(Item::Map(&selector::SELECTOR), 0, usize::MAX),
    "Workloads by their labels; [] is nobody, [{}] every workload of the policy's namespace.",
);
const TO_ENDPOINTS: Field = field("toEndpoints", FROM_ENDPOINTS.shape, FROM_ENDPOINTS.about);
const FROM_ENTITIES: Field = field(
    "fromEntities",
    Shape::List(Item::Choice(peers::ENTITIES), 0, usize::MAX),
    "Far ends that have no labels.",
);
const TO_ENTITIES: Field = field("toEntities", FROM_ENTITIES.shape, FROM_ENTITIES.about);
const FROM_CIDR: Field = field(
    "fromCIDR",
    Shape::List(Item::Text, 0, usize::MAX),
    "Addresses outside the mesh, as prefixes or single ones.",
);
const TO_CIDR: Field = field("toCIDR", FROM_CIDR.shape, FROM_CIDR.about);
const FROM_CIDR_SET: Field = field(
    "fromCIDRSet",
    Shape::List(Item::Map(&peers::BLOCK), 0, usize::MAX),
    "Prefixes outside the mesh without some prefixes inside them.",
);
const TO_CIDR_SET: Field = field("toCIDRSet", FROM_CIDR_SET.shape, FROM_CIDR_SET.about);
const TO_PORTS: Field = field(
    "toPorts",
    Shape::List(Item::Map(&ports::ITEM), 0, usize::MAX),
    "Destination ports; without them every protocol and port is meant.",
);
const ICMPS: Field = field(
    "icmps",
    Shape::List(Item::Map(&icmps::RULE), 0, usize::MAX),
    "ICMP messages that open a flow; cannot stand beside toPorts.",
);
const ENCRYPTION: Field = field(
    "encryption",
    Shape::Map(&rule::ENCRYPTION),
    "Whether the flow must go through a tunnel.",
);
const OWN_AUTHENTICATION: Field = field(
    "authentication",
    Shape::Map(&authentication::OWN),
    "How both ends must be proven.",
);
const CILIUM_AUTHENTICATION: Field = field(
    "authentication",
    Shape::Map(&authentication::CILIUM),
    "How both ends must be proven.",
);

static INGRESS: Schema = Schema {
    about: "Who may reach the selected workloads, and on which ports.",
    known: &[
        FROM_ENDPOINTS,
        FROM_ENTITIES,
        FROM_CIDR,
        FROM_CIDR_SET,
        TO_PORTS,
        ICMPS,
        OWN_AUTHENTICATION,
        ENCRYPTION,
    ],
    refused: INGRESS_REFUSED,
};
static EGRESS: Schema = Schema {
    about: "Whom the selected workloads may reach, and on which ports.",
    known: &[
        TO_ENDPOINTS,
        TO_ENTITIES,
        TO_CIDR,
        TO_CIDR_SET,
        TO_PORTS,
        ICMPS,
        OWN_AUTHENTICATION,
        ENCRYPTION,
    ],
    refused: EGRESS_REFUSED,
};
static CILIUM_INGRESS: Schema = Schema {
    about: INGRESS.about,
    known: &[
        FROM_ENDPOINTS,
        FROM_ENTITIES,
        FROM_CIDR,
        FROM_CIDR_SET,
        TO_PORTS,
        ICMPS,
        CILIUM_AUTHENTICATION,
    ],
    refused: INGRESS_REFUSED,
};
static CILIUM_EGRESS: Schema = Schema {
    about: EGRESS.about,
    known: &[
        TO_ENDPOINTS,
        TO_ENTITIES,
        TO_CIDR,
        TO_CIDR_SET,
        TO_PORTS,
        ICMPS,
        CILIUM_AUTHENTICATION,
    ],
    refused: EGRESS_REFUSED,
};

/// Deny rules are the same in every dialect, and ask nothing of a flow.
pub(crate) static INGRESS_DENY: Schema = Schema {
    about: "Who may not reach the selected workloads, whatever other rules allow.",
    known: &[
        FROM_ENDPOINTS,
        FROM_ENTITIES,
        FROM_CIDR,
        FROM_CIDR_SET,
        TO_PORTS,
        ICMPS,
    ],
    refused: DENY_REFUSED,
};

/// The same for the other direction.
pub(crate) static EGRESS_DENY: Schema = Schema {
    about: "Whom the selected workloads may not reach, whatever other rules allow.",
    known: &[
        TO_ENDPOINTS,
        TO_ENTITIES,
        TO_CIDR,
        TO_CIDR_SET,
        TO_PORTS,
        ICMPS,
    ],
    refused: DENY_REFUSED,
};

const DESCRIPTION: Field = field("description", Shape::Text, "For people.");
const ENDPOINT_SELECTOR: Field = field(
    "endpointSelector",
    Shape::Map(&selector::SELECTOR),
    "The workloads that the rules are for; {} selects every one.",
)
.required();
const DEFAULT_DENY: Field = field(
    "enableDefaultDeny",
    Shape::Map(&rule::DEFAULT_DENY),
    "Whether a direction denies what no rule allows; unsaid, it does if it has a rule.",
);

/// The lists of rules of a spec, from the schemas of their items.
macro_rules! lists {
    ($ingress:expr, $egress:expr) => {
        [
            field(
                "ingress",
                Shape::List(Item::Map(&$ingress), 0, usize::MAX),
                "What the workloads may receive.",
            ),
            field(
                "ingressDeny",
                Shape::List(Item::Map(&INGRESS_DENY), 0, usize::MAX),
                "What the workloads never receive.",
            ),
            field(
                "egress",
                Shape::List(Item::Map(&$egress), 0, usize::MAX),
                "What the workloads may send.",
            ),
            field(
                "egressDeny",
                Shape::List(Item::Map(&EGRESS_DENY), 0, usize::MAX),
                "What the workloads never send.",
            ),
        ]
    };
}

const OWN_LISTS: [Field; 4] = lists!(INGRESS, EGRESS);
const CILIUM_LISTS: [Field; 4] = lists!(CILIUM_INGRESS, CILIUM_EGRESS);

static SPEC: Schema = Schema {
    about: "Some workloads, and what they may receive and send.",
    known: &{
        let [ingress, ingress_deny, egress, egress_deny] = OWN_LISTS;
        [
            DESCRIPTION,
            ENDPOINT_SELECTOR,
            ingress,
            ingress_deny,
            egress,
            egress_deny,
            DEFAULT_DENY,
        ]
    },
    refused: SPEC_REFUSED,
};

/// `labels` names a rule for management only; nothing is enforced by it, so it is read over.
pub(crate) static CILIUM_SPEC: Schema = Schema {
    about: SPEC.about,
    known: &{
        let [ingress, ingress_deny, egress, egress_deny] = CILIUM_LISTS;
        [
            DESCRIPTION,
            field(
                "labels",
                Shape::Opaque,
                "For management; nothing is enforced by it.",
            ),
            ENDPOINT_SELECTOR,
            ingress,
            ingress_deny,
            egress,
            egress_deny,
            DEFAULT_DENY,
        ]
    },
    refused: SPEC_REFUSED,
};

/// Every kind that is read.
pub(crate) static DIALECTS: [Dialect; 4] = [HANDFAST, CILIUM, CLUSTERWIDE, KUBERNETES];

const HANDFAST: Dialect = Dialect {
    kind: Kind::HandfastPolicy,
    name: "HandfastPolicy",
    api_version: "handfast.io/v1alpha1",
    about: "What some workloads may receive and send, and how both ends must be proven.",
    spec: &SPEC,
    rules: Some(Rules {
        ingress: &INGRESS,
        egress: &EGRESS,
        authentication: &authentication::OWN,
        modes: authentication::OWN_MODES,
    }),
};

const CILIUM_RULES: Rules = Rules {
    ingress: &CILIUM_INGRESS,
    egress: &CILIUM_EGRESS,
    authentication: &authentication::CILIUM,
    modes: authentication::CILIUM_MODES,
};

const CILIUM: Dialect = Dialect {
    kind: Kind::CiliumNetworkPolicy,
    name: "CiliumNetworkPolicy",
    api_version: "cilium.io/v2",
    about: "The part of a CiliumNetworkPolicy that handfast enforces.",
    spec: &CILIUM_SPEC,
    rules: Some(CILIUM_RULES),
};

const CLUSTERWIDE: Dialect = Dialect {
    kind: Kind::CiliumClusterwideNetworkPolicy,
    name: "CiliumClusterwideNetworkPolicy",
    api_version: "cilium.io/v2",
    about: "The part of a CiliumClusterwideNetworkPolicy that handfast enforces.",
    spec: &CILIUM_SPEC,
    rules: Some(CILIUM_RULES),
};

const KUBERNETES: Dialect = Dialect {
    kind: Kind::NetworkPolicy,
    name: "NetworkPolicy",
    api_version: "networking.k8s.io/v1",
    about: "A NetworkPolicy of Kubernetes.",
    spec: &kubernetes::SPEC,
    rules: None,
};
