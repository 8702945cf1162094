//! What Cilium's documentation of layer 3 and layer 4 policies shows, example by example: the verdicts that it
//! promises, or the error that says what to write instead. The documents are our own; the names are those of the
//! sections that show such a policy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use handfast_policies::{
    Direction::{self, Egress, Ingress},
    PolicySet, Protocol, Remote, Source, Workload,
};
use spiffe::SpiffeId;

use Protocol::{Any, Icmp, Icmpv6, Sctp, Tcp, Udp};

/// Who a flow is with: `k=v,k=v` is a workload, an address is outside the mesh, `host` the node.
type Far = &'static str;

/// One flow, and whether it passes.
struct Flow(Direction, Far, Protocol, u16, bool);

enum Says {
    /// Of a workload with these labels.
    Verdicts(&'static str, &'static [Flow]),
    /// The place and the words of the error.
    Refused(&'static str),
}

struct Example {
    section: &'static str,
    kind: &'static str,
    metadata: &'static str,
    spec: &'static str,
    says: Says,
}

const CNP: &str = "CiliumNetworkPolicy";
const CCNP: &str = "CiliumClusterwideNetworkPolicy";

const fn cnp(section: &'static str, spec: &'static str, says: Says) -> Example {
    Example {
        section,
        kind: CNP,
        metadata: "{name: example}",
        spec,
        says,
    }
}

fn workload(labels: &str) -> Workload {
    let labels = labels.split(',').filter_map(|label| label.split_once('='));
    Workload {
        spiffe_id: SpiffeId::new("spiffe://example.org/w").unwrap(),
        labels: labels.map(|(k, v)| (k.into(), v.into())).collect(),
    }
}

fn far(set: &PolicySet, far: &str) -> Remote {
    match far {
        "host" => Remote::Host,
        labels if labels.contains('=') => Remote::Workload(workload(labels)),
        address => set.outside(address.parse().unwrap()),
    }
}

const EXAMPLES: &[Example] = &[
    cnp(
        "Endpoints based: simple ingress allow",
        "{endpointSelector: {matchLabels: {role: store}}, ingress: [{fromEndpoints: [{matchLabels: {role: web}}]}]}",
        Says::Verdicts(
            "role=store",
            &[
                Flow(Ingress, "role=web", Tcp, 80, true),
                Flow(Ingress, "role=web", Any, 0, true),
                Flow(Ingress, "role=other", Tcp, 80, false),
                Flow(Ingress, "192.0.2.1", Tcp, 80, false),
                Flow(Egress, "role=other", Tcp, 80, true),
            ],
        ),
    ),
    cnp(
        "Endpoints based: ingress allow all endpoints",
        "{endpointSelector: {matchLabels: {role: store}}, ingress: [{fromEndpoints: [{}]}]}",
        Says::Verdicts(
            "role=store",
            &[
                Flow(Ingress, "role=any", Tcp, 80, true),
                Flow(Ingress, "192.0.2.1", Tcp, 80, false),
            ],
        ),
    ),
    cnp(
        "Endpoints based: simple egress allow",
        "{endpointSelector: {matchLabels: {role: web}}, egress: [{toEndpoints: [{matchLabels: {role: store}}]}]}",
        Says::Verdicts(
            "role=web",
            &[
                Flow(Egress, "role=store", Udp, 53, true),
                Flow(Egress, "role=other", Udp, 53, false),
                Flow(Egress, "192.0.2.1", Tcp, 80, false),
                Flow(Ingress, "role=other", Tcp, 80, true),
            ],
        ),
    ),
    cnp(
        "Endpoints based: egress allow all endpoints",
        "{endpointSelector: {matchLabels: {role: web}}, egress: [{toEndpoints: [{}]}]}",
        Says::Verdicts(
            "role=web",
            &[
                Flow(Egress, "role=other", Tcp, 80, true),
                Flow(Egress, "192.0.2.1", Tcp, 80, false),
            ],
        ),
    ),
    cnp(
        "Endpoints based: ingress default deny",
        "{endpointSelector: {matchLabels: {role: sealed}}, ingress: [{}]}",
        Says::Verdicts(
            "role=sealed",
            &[
                Flow(Ingress, "role=other", Tcp, 80, false),
                Flow(Egress, "role=other", Tcp, 80, true),
            ],
        ),
    ),
    cnp(
        "Endpoints based: egress default deny",
        "{endpointSelector: {matchLabels: {role: sealed}}, egress: [{}]}",
        Says::Verdicts(
            "role=sealed",
            &[
                Flow(Egress, "role=other", Tcp, 80, false),
                Flow(Egress, "192.0.2.1", Any, 0, false),
                Flow(Ingress, "role=other", Tcp, 80, true),
            ],
        ),
    ),
    cnp(
        "Endpoints based: additional label requirements",
        "{endpointSelector: {matchLabels: {stage: live}}, ingress: [{fromRequires: [{matchLabels: {stage: live}}]}]}",
        Says::Refused(
            "spec.ingress[0].fromRequires: handfast does not enforce fromRequires: add the labels",
        ),
    ),
    cnp(
        "Match expressions: several that must all hold",
        "{endpointSelector: {matchExpressions: [{key: app, operator: In, values: [a, b]}, {key: tier, operator: \
         NotIn, values: [test]}]}, ingress: [{}]}",
        Says::Verdicts("app=b", &[Flow(Ingress, "role=other", Tcp, 80, false)]),
    ),
    cnp(
        "Match expressions: any of several values",
        "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchExpressions: [{key: app, operator: In, values: [a, \
         b]}]}]}]}",
        Says::Verdicts(
            "role=store",
            &[
                Flow(Ingress, "app=a", Tcp, 80, true),
                Flow(Ingress, "app=b", Tcp, 80, true),
                Flow(Ingress, "app=c", Tcp, 80, false),
            ],
        ),
    ),
    cnp(
        "Services based: by name",
        "{endpointSelector: {}, egress: [{toServices: [{k8sService: {serviceName: store, namespace: shop}}]}]}",
        Says::Refused(
            "spec.egress[0].toServices: handfast does not enforce toServices: select the workloads",
        ),
    ),
    cnp(
        "Entities based: access to the API server",
        "{endpointSelector: {}, egress: [{toEntities: [kube-apiserver]}]}",
        Says::Refused(
            "spec.egress[0].toEntities[0]: handfast does not tell the entity kube-apiserver apart: write the API \
             servers' addresses as CIDRs",
        ),
    ),
    cnp(
        "Entities based: access to the local host",
        "{endpointSelector: {matchLabels: {env: dev}}, egress: [{toEntities: [host]}]}",
        Says::Verdicts(
            "env=dev",
            &[
                Flow(Egress, "host", Tcp, 10_250, true),
                Flow(Egress, "192.0.2.1", Tcp, 80, false),
                Flow(Egress, "env=dev", Tcp, 80, false),
            ],
        ),
    ),
    cnp(
        "Entities based: access to all nodes",
        "{endpointSelector: {}, egress: [{toEntities: [host, remote-node]}]}",
        Says::Refused(
            "spec.egress[0].toEntities[1]: handfast does not tell the entity remote-node apart",
        ),
    ),
    cnp(
        "Entities based: access to and from the outside",
        "{endpointSelector: {matchLabels: {role: public}}, ingress: [{fromEntities: [world]}]}",
        Says::Verdicts(
            "role=public",
            &[
                Flow(Ingress, "192.0.2.1", Tcp, 443, true),
                Flow(Ingress, "2001:db8::1", Tcp, 443, true),
                Flow(Ingress, "role=other", Tcp, 443, false),
                Flow(Ingress, "host", Tcp, 443, false),
            ],
        ),
    ),
    cnp(
        "Entities based: everything in the cluster",
        "{endpointSelector: {}, egress: [{toEntities: [cluster]}]}",
        Says::Verdicts(
            "role=web",
            &[
                Flow(Egress, "role=store", Tcp, 80, true),
                Flow(Egress, "host", Tcp, 80, true),
                Flow(Egress, "192.0.2.1", Tcp, 80, false),
            ],
        ),
    ),
    cnp(
        "Entities based: one family of addresses",
        "{endpointSelector: {}, egress: [{toEntities: [world-ipv6]}]}",
        Says::Verdicts(
            "role=web",
            &[
                Flow(Egress, "2001:db8::1", Tcp, 80, true),
                Flow(Egress, "192.0.2.1", Tcp, 80, false),
            ],
        ),
    ),
    cnp(
        "Node based",
        "{endpointSelector: {}, ingress: [{fromNodes: [{matchLabels: {zone: a}}]}]}",
        Says::Refused(
            "spec.ingress[0].fromNodes: handfast does not enforce fromNodes: write the nodes' addresses",
        ),
    ),
    cnp(
        "CIDR based: a prefix, and a set with exceptions",
        "{endpointSelector: {}, egress: [{toCIDR: [198.51.100.1/32]}, {toCIDRSet: [{cidr: 10.0.0.0/8, except: \
         [10.96.0.0/12]}]}]}",
        Says::Verdicts(
            "role=web",
            &[
                Flow(Egress, "198.51.100.1", Tcp, 80, true),
                Flow(Egress, "198.51.100.2", Tcp, 80, false),
                Flow(Egress, "10.1.2.3", Tcp, 80, true),
                Flow(Egress, "10.96.0.1", Tcp, 80, false),
                Flow(Egress, "role=other", Tcp, 80, false),
            ],
        ),
    ),
    cnp(
        "CIDR based: a group of prefixes",
        "{endpointSelector: {}, egress: [{toCIDRSet: [{cidrGroupRef: partners}]}]}",
        Says::Refused(
            "spec.egress[0].toCIDRSet[0].cidrGroupRef: handfast does not enforce cidrGroupRef",
        ),
    ),
    cnp(
        "DNS based",
        "{endpointSelector: {}, egress: [{toFQDNs: [{matchName: example.org}]}]}",
        Says::Refused(
            "spec.egress[0].toFQDNs: handfast does not enforce toFQDNs: write the addresses as CIDRs",
        ),
    ),
    cnp(
        "Layer 4: one port outward",
        "{endpointSelector: {matchLabels: {app: mine}}, egress: [{toPorts: [{ports: [{port: \"80\", protocol: \
         TCP}]}]}]}",
        Says::Verdicts(
            "app=mine",
            &[
                Flow(Egress, "192.0.2.1", Tcp, 80, true),
                Flow(Egress, "role=other", Tcp, 80, true),
                Flow(Egress, "role=other", Udp, 80, false),
                Flow(Egress, "role=other", Tcp, 81, false),
                Flow(Egress, "role=other", Icmp, 8, false),
            ],
        ),
    ),
    cnp(
        "Layer 4: a range of ports",
        "{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: \"80\", endPort: 444, protocol: TCP}]}]}]}",
        Says::Verdicts(
            "app=mine",
            &[
                Flow(Egress, "192.0.2.1", Tcp, 80, true),
                Flow(Egress, "192.0.2.1", Tcp, 444, true),
                Flow(Egress, "192.0.2.1", Tcp, 79, false),
                Flow(Egress, "192.0.2.1", Tcp, 445, false),
            ],
        ),
    ),
    cnp(
        "Layer 4: by labels and port",
        "{endpointSelector: {matchLabels: {role: store}}, ingress: [{fromEndpoints: [{matchLabels: {role: web}}], \
         toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]}]}",
        Says::Verdicts(
            "role=store",
            &[
                Flow(Ingress, "role=web", Tcp, 80, true),
                Flow(Ingress, "role=web", Tcp, 81, false),
                Flow(Ingress, "role=other", Tcp, 80, false),
            ],
        ),
    ),
    cnp(
        "Layer 4: by prefix and port",
        "{endpointSelector: {}, egress: [{toCIDR: [192.0.2.0/24], toPorts: [{ports: [{port: \"80\", protocol: \
         TCP}]}]}]}",
        Says::Verdicts(
            "role=web",
            &[
                Flow(Egress, "192.0.2.7", Tcp, 80, true),
                Flow(Egress, "192.0.2.7", Tcp, 443, false),
                Flow(Egress, "198.51.100.1", Tcp, 80, false),
            ],
        ),
    ),
    cnp(
        "Layer 4: several rules, each for itself",
        "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {role: web}}]}, {toPorts: [{ports: [{port: \
         \"80\", protocol: TCP}]}]}]}",
        Says::Verdicts(
            "role=store",
            &[
                Flow(Ingress, "role=web", Sctp, 7, true),
                Flow(Ingress, "192.0.2.1", Tcp, 80, true),
                Flow(Ingress, "192.0.2.1", Tcp, 81, false),
            ],
        ),
    ),
    cnp(
        "Layer 4: ICMP by type",
        "{endpointSelector: {}, egress: [{icmps: [{fields: [{type: 8, family: IPv4}, {type: EchoRequest, family: \
         IPv6}]}]}]}",
        Says::Verdicts(
            "role=web",
            &[
                Flow(Egress, "192.0.2.1", Icmp, 8, true),
                Flow(Egress, "2001:db8::1", Icmpv6, 128, true),
                Flow(Egress, "192.0.2.1", Icmp, 13, false),
                Flow(Egress, "192.0.2.1", Icmpv6, 8, false),
                Flow(Egress, "192.0.2.1", Tcp, 8, false),
            ],
        ),
    ),
    cnp(
        "Layer 4: TLS server names",
        "{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: \"443\"}], serverNames: [example.org]}]}]}",
        Says::Refused(
            "spec.egress[0].toPorts[0].serverNames: handfast does not enforce serverNames",
        ),
    ),
    cnp(
        "Layer 4: a proxy's listener",
        "{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: \"443\"}], listener: {name: a}}]}]}",
        Says::Refused(
            "spec.egress[0].toPorts[0].listener: handfast does not enforce listener: there is no proxy",
        ),
    ),
    cnp(
        "Layer 7: requests",
        "{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: \"80\"}], rules: {http: [{method: GET}]}}]}]}",
        Says::Refused(
            "spec.ingress[0].toPorts[0].rules: handfast does not enforce rules: requests are not looked",
        ),
    ),
    cnp(
        "Deny: the outside, while all else is allowed",
        "{endpointSelector: {}, ingress: [{fromEntities: [all]}], ingressDeny: [{fromEntities: [world]}]}",
        Says::Verdicts(
            "role=web",
            &[
                Flow(Ingress, "role=other", Tcp, 80, true),
                Flow(Ingress, "host", Tcp, 80, true),
                Flow(Ingress, "192.0.2.1", Tcp, 80, false),
            ],
        ),
    ),
    Example {
        section: "Deny: a namespace, cluster-wide",
        kind: CCNP,
        metadata: "{name: example}",
        spec: "{endpointSelector: {matchLabels: {k8s:io.kubernetes.pod.namespace: quarantine}}, ingress: \
               [{fromEntities: [all]}], ingressDeny: [{fromEndpoints: [{}], toPorts: [{ports: [{port: \"23\", protocol: \
               TCP}]}]}]}",
        says: Says::Verdicts(
            "io.kubernetes.pod.namespace=quarantine",
            &[
                Flow(Ingress, "io.kubernetes.pod.namespace=shop", Tcp, 23, false),
                Flow(Ingress, "io.kubernetes.pod.namespace=shop", Tcp, 80, true),
                Flow(Ingress, "192.0.2.1", Tcp, 23, true),
            ],
        ),
    },
    Example {
        section: "Cluster-wide: endpoints without an identity yet",
        kind: CCNP,
        metadata: "{name: example}",
        spec: "{endpointSelector: {matchLabels: {\"reserved:init\": \"\"}}, ingress: [{fromEntities: [host]}]}",
        says: Says::Refused("unknown reserved: label"),
    },
    Example {
        section: "Cluster-wide: host policies",
        kind: CCNP,
        metadata: "{name: example}",
        spec: "{nodeSelector: {matchLabels: {type: ingress}}, ingress: [{fromEntities: [cluster]}]}",
        says: Says::Refused(
            "spec.nodeSelector: handfast does not enforce nodeSelector: there are no host policies",
        ),
    },
    Example {
        section: "Kubernetes: a policy stays in its namespace",
        kind: CNP,
        metadata: "{name: example, namespace: shop}",
        spec: "{endpointSelector: {matchLabels: {name: a}}, ingress: [{fromEndpoints: [{matchLabels: {name: b}}]}]}",
        says: Says::Verdicts(
            "name=a,io.kubernetes.pod.namespace=shop",
            &[
                Flow(
                    Ingress,
                    "name=b,io.kubernetes.pod.namespace=shop",
                    Tcp,
                    80,
                    true,
                ),
                Flow(
                    Ingress,
                    "name=b,io.kubernetes.pod.namespace=bank",
                    Tcp,
                    80,
                    false,
                ),
            ],
        ),
    },
    Example {
        section: "Kubernetes: from another namespace",
        kind: CNP,
        metadata: "{name: example, namespace: shop}",
        spec: "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {k8s:io.kubernetes.pod.namespace: \
               bank, name: b}}]}]}",
        says: Says::Verdicts(
            "name=a,io.kubernetes.pod.namespace=shop",
            &[
                Flow(
                    Ingress,
                    "name=b,io.kubernetes.pod.namespace=bank",
                    Tcp,
                    80,
                    true,
                ),
                Flow(
                    Ingress,
                    "name=b,io.kubernetes.pod.namespace=shop",
                    Tcp,
                    80,
                    false,
                ),
            ],
        ),
    },
    Example {
        section: "Kubernetes: name service of the cluster",
        kind: CCNP,
        metadata: "{name: example}",
        spec: "{endpointSelector: {}, egress: [{toEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: \
               kube-system, k8s-app: kube-dns}}], toPorts: [{ports: [{port: \"53\", protocol: UDP}]}]}]}",
        says: Says::Verdicts(
            "name=a,io.kubernetes.pod.namespace=shop",
            &[
                Flow(
                    Egress,
                    "k8s-app=kube-dns,io.kubernetes.pod.namespace=kube-system",
                    Udp,
                    53,
                    true,
                ),
                Flow(Egress, "k8s-app=kube-dns", Udp, 53, false),
            ],
        ),
    },
    Example {
        section: "Kubernetes: by service account",
        kind: CNP,
        metadata: "{name: example}",
        spec: "{endpointSelector: {matchLabels: {io.cilium.k8s.policy.serviceaccount: luke}}, ingress: \
               [{fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: leia}}]}]}",
        says: Says::Verdicts(
            "io.cilium.k8s.policy.serviceaccount=luke",
            &[
                Flow(
                    Ingress,
                    "io.cilium.k8s.policy.serviceaccount=leia",
                    Tcp,
                    80,
                    true,
                ),
                Flow(
                    Ingress,
                    "io.cilium.k8s.policy.serviceaccount=han",
                    Tcp,
                    80,
                    false,
                ),
            ],
        ),
    },
    cnp(
        "Default deny switched off: rules that add and close nothing",
        "{endpointSelector: {}, enableDefaultDeny: {ingress: false}, ingressDeny: [{toPorts: [{ports: [{port: \
         \"23\"}]}]}]}",
        Says::Verdicts(
            "role=web",
            &[
                Flow(Ingress, "role=other", Tcp, 80, true),
                Flow(Ingress, "192.0.2.1", Tcp, 23, false),
            ],
        ),
    ),
    cnp(
        "Default deny switched on: nothing but what others allow",
        "{endpointSelector: {}, enableDefaultDeny: {egress: true}, ingress: [{fromEndpoints: [{}]}]}",
        Says::Verdicts(
            "role=web",
            &[
                Flow(Egress, "role=other", Tcp, 80, false),
                Flow(Ingress, "role=other", Tcp, 80, true),
            ],
        ),
    ),
    cnp(
        "Mutual authentication",
        "{endpointSelector: {matchLabels: {run: web}}, ingress: [{fromEndpoints: [{matchLabels: {run: client}}], \
         authentication: {mode: required}}]}",
        Says::Verdicts(
            "run=web",
            &[
                Flow(Ingress, "run=client", Tcp, 80, true),
                Flow(Ingress, "run=other", Tcp, 80, false),
            ],
        ),
    ),
];

#[test]
fn every_example_has_the_documented_verdicts_or_an_error_that_says_what_to_write() {
    for example in EXAMPLES {
        let text = format!(
            "apiVersion: cilium.io/v2\nkind: {}\nmetadata: {}\nspec: {}\n",
            example.kind, example.metadata, example.spec
        );
        let read = PolicySet::read(vec![Source {
            name: "example.yaml".to_owned(),
            text,
        }]);
        match (&example.says, read) {
            (Says::Verdicts(labels, flows), Ok(set)) => {
                let local = workload(labels);
                for Flow(direction, other, protocol, port, passes) in *flows {
                    let remote = far(&set, other);
                    let ruling = set
                        .of_workload(&local)
                        .ruling(&remote, *direction, *protocol, *port);
                    assert_eq!(
                        ruling.is_allowed(),
                        *passes,
                        "{}: {direction} {other} {protocol} {port}: {ruling:?}",
                        example.section
                    );
                }
            }
            (Says::Refused(words), Err(errors)) => {
                let said: Vec<_> = errors.iter().map(ToString::to_string).collect();
                let found = said.iter().any(|error| error.contains(words));
                assert!(found, "{}: {said:#?}", example.section);
            }
            (Says::Verdicts(..), Err(errors)) => panic!("{}: {errors:#?}", example.section),
            (Says::Refused(words), Ok(_)) => {
                panic!("{} is read, and should say: {words}", example.section)
            }
        }
    }
}
