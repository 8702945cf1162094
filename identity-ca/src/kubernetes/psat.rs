//! k8s_psat: a node shows the token that the cluster projected into its agent's pod.
//!
//! The API server judges the token (TokenReview) and says whose it is; it is bound to this CA's audience, to the pod
//! and, through it, to the node. Which prefixes come with the node is not the token's to say.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PostParams;
use kube::{Api, Client};
use prost::Message;

use super::api;
use super::config::NodesConfig;
use super::prefixes::Prefixes;
use crate::attest::{Caller, NodeAttestor, Proven};
use crate::registry::{NodeOrder, session_address};
use crate::{Error, NodeName, proto};

pub(crate) const KIND: &str = "k8s_psat";

/// A token with more bytes is not read.
pub(crate) const MAX_TOKEN: usize = 16 << 10;

/// For all that the API server is asked for one attestation; the caller waits 30 s.
const PATIENCE: Duration = Duration::from_secs(10);

const ACCOUNT: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";

/// Asks the cluster.
pub(crate) struct K8sPsat {
    client: Client,
    audience: String,
    /// As usernames.
    accounts: HashSet<String>,
    prefixes: Prefixes,
    /// Where nodes' prefixes come from, and so where none of them is reached.
    ranges: Vec<IpNet>,
    joining: bool,
}

impl K8sPsat {
    pub(crate) fn open(
        config: &NodesConfig,
        client: Client,
        ranges: &[IpNet],
    ) -> Result<Self, Error> {
        let bad = |problem: String| Error::invalid("Kubernetes nodes", problem);
        if config.audience.is_empty() {
            return Err(bad(
                "name the audience that tokens must be for, such as handfast-ca".to_owned(),
            ));
        }
        let accounts = config.service_accounts.iter().map(|account| {
            let named = account.split_once('/').filter(|(namespace, name)| {
                let plain = |part: &str| !part.is_empty() && !part.contains(['/', ':']);
                plain(namespace) && plain(name)
            });
            let (namespace, name) = named
                .ok_or_else(|| bad(format!("service account {account:?}: write NAMESPACE/NAME")))?;
            Ok(format!("{ACCOUNT}{namespace}:{name}"))
        });
        let accounts: HashSet<String> = accounts.collect::<Result<_, Error>>()?;
        if accounts.is_empty() {
            return Err(bad(
                "name the agents' service accounts; else every pod could be a node".to_owned(),
            ));
        }
        Ok(Self {
            prefixes: Prefixes::new(config.prefixes.clone(), client.clone()),
            client,
            audience: config.audience.clone(),
            accounts,
            ranges: ranges.to_vec(),
            joining: config.joining,
        })
    }

    /// Which node a token is from.
    async fn judge(&self, claim: &proto::K8sPsatClaim) -> Result<NodeOrder, Error> {
        let user = self.review(&claim.token).await?;
        let username = user.username.as_deref().unwrap_or_default();
        if !self.accounts.contains(username) {
            return Err(refuse(format!(
                "the token is of {username:?}, which is no service account of agents here"
            )));
        }
        let extra = user.extra.unwrap_or_default();
        let (name, uid) = self.node_of(username, &extra).await?;
        if !claim.node.is_empty() && claim.node != name {
            return Err(refuse(format!(
                "the token is of a pod on node {name}, not on node {} as claimed",
                claim.node.chars().take(253).collect::<String>()
            )));
        }
        let node: Node = Api::all(self.client.clone())
            .get(&name)
            .await
            .map_err(api("get the node"))?;
        if uid.is_some() && uid != node.metadata.uid {
            return Err(refuse(format!(
                "the token is of an earlier node of the name {name}"
            )));
        }
        let order = NodeOrder {
            name: name.parse::<NodeName>()?,
            prefixes: self.prefixes.of(&name, &node).await?,
            underlay: self.underlay(&node)?,
            managed: !self.joining,
        };
        if order.underlay.is_empty() {
            return Err(refuse(format!(
                "node {name} has no InternalIP where its peers could reach it"
            )));
        }
        Ok(order)
    }

    /// Whose token it is, if the API server vouches for it and it is for us.
    async fn review(&self, token: &str) -> Result<UserInfo, Error> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: token.to_owned(),
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let review = reviews
            .create(&PostParams::default(), &review)
            .await
            .map_err(api("review the token"))?;
        let status = review.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let why = status.error.unwrap_or_default();
            let why = if why.is_empty() {
                "no reason given"
            } else {
                &why
            };
            return Err(refuse(format!("the API server refuses the token: {why}")));
        }
        // An API server that does not know audiences takes any of its tokens, and says so by naming none.
        let ours = status
            .audiences
            .unwrap_or_default()
            .contains(&self.audience);
        if !ours {
            return Err(refuse(format!(
                "the token is not for the audience {:?}",
                self.audience
            )));
        }
        status
            .user
            .ok_or_else(|| refuse("the API server does not say whose the token is".to_owned()))
    }

    /// The node's name, and its UID where the token has it. Newer API servers write both into tokens; with an older
    /// one the pod is asked.
    async fn node_of(
        &self,
        username: &str,
        extra: &BTreeMap<String, Vec<String>>,
    ) -> Result<(String, Option<String>), Error> {
        let of = |key: &str| match extra.get(key).map(Vec::as_slice) {
            Some([value]) => Some(value.clone()),
            _ => None,
        };
        let (Some(pod), Some(uid)) = (of(POD_NAME), of(POD_UID)) else {
            return Err(refuse(
                "the token is bound to no pod: project it into the agent's pod".to_owned(),
            ));
        };
        if let Some(node) = of(NODE_NAME) {
            return Ok((node, of(NODE_UID)));
        }
        let account = username.strip_prefix(ACCOUNT).unwrap_or_default();
        let (namespace, _) = account.split_once(':').unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = pods
            .get_opt(&pod)
            .await
            .map_err(api("get the agent's pod"))?
            .filter(|found| found.metadata.uid.as_ref() == Some(&uid));
        let Some(found) = found else {
            return Err(refuse(format!(
                "the token's pod {namespace}/{pod} is there no more"
            )));
        };
        let node = found.spec.and_then(|spec| spec.node_name);
        let node = node.filter(|node| !node.is_empty());
        match node {
            Some(node) => Ok((node, None)),
            None => Err(refuse(format!(
                "the token's pod {namespace}/{pod} is on no node yet"
            ))),
        }
    }

    /// Where its sessions are reached. A node writes that itself: in the ranges it could name addresses that another
    /// node's prefix is to hold, and keep that one out.
    fn underlay(&self, node: &Node) -> Result<Vec<SocketAddr>, Error> {
        let addresses = node
            .status
            .as_ref()
            .and_then(|status| status.addresses.as_ref());
        let internal = addresses
            .into_iter()
            .flatten()
            .filter(|address| address.type_ == "InternalIP");
        let underlay: Vec<SocketAddr> = internal
            .map(|address| session_address(&address.address))
            .collect::<Result<_, _>>()?;
        let within = underlay.iter().find_map(|address| {
            let range = self
                .ranges
                .iter()
                .find(|range| range.contains(&address.ip()))?;
            Some((address.ip(), *range))
        });
        match within {
            None => Ok(underlay),
            Some((address, range)) => Err(refuse(format!(
                "the node's InternalIP {address} lies in {range}, where this CA gives prefixes of pods: the ranges of `handfast ca init --prefix-range` are to hold pods alone"
            ))),
        }
    }
}

#[tonic::async_trait]
impl NodeAttestor for K8sPsat {
    fn kind(&self) -> &'static str {
        KIND
    }

    /// The key is not bound by the token, which is a bearer's: who could relay it has it, and needs no relay. It
    /// travels only to a CA that the node has recognised by its root.
    async fn attest(
        &self,
        claim: &[u8],
        _: &[u8; 32],
        _: &mut dyn Caller,
    ) -> Result<Proven, Error> {
        let claim = proto::K8sPsatClaim::decode(claim)
            .map_err(|_| Error::invalid(KIND, "a malformed claim"))?;
        if claim.token.is_empty() || claim.token.len() > MAX_TOKEN {
            return Err(Error::invalid(
                KIND,
                format!("a token has 1 to {MAX_TOKEN} bytes"),
            ));
        }
        let judged = tokio::time::timeout(PATIENCE, self.judge(&claim)).await;
        let order = judged.map_err(|_| Error::Cluster {
            doing: "attest a node",
            problem: format!("no answer within {} s", PATIENCE.as_secs()),
        })?;
        order.map(Proven::Node)
    }
}

fn refuse(problem: String) -> Error {
    Error::Denied(format!("{KIND}: {problem}"))
}
