//! Rotations as operators see them.

use std::collections::HashSet;
use std::time::Duration;

use super::keep::world;
use crate::authority::{Kind, Record, Standing};
use crate::model::Node;
use crate::rotation::journal::{Rotation, Taken};
use crate::rotation::plan::{Blocker, Stage, What};
use crate::rotation::run::counts;
use crate::server::state::State;
use crate::{Error, now_ms, proto};

/// Everything at once.
pub(super) async fn status(state: &State) -> Result<proto::RotationStatusReply, Error> {
    let mut reader = state.registry.store().reader().acquire().await?;
    let recent = Rotation::recent(&mut reader).await?;
    drop(reader);
    let (mut live, mut ended) = (Vec::new(), Vec::new());
    for known in &recent {
        let seen = rotation(state, known).await?;
        if known.plan.stage.is_final() {
            ended.push(seen);
        } else {
            live.push(seen);
        }
    }
    let authorities = state.authority.authorities();
    Ok(proto::RotationStatusReply {
        authorities: authorities
            .all()
            .iter()
            .map(|record| authority(state, record))
            .collect(),
        live,
        ended,
    })
}

/// One rotation, with whom it waits for.
pub(super) async fn rotation(
    state: &State,
    rotation: &Rotation,
) -> Result<proto::RotationState, Error> {
    let mut reader = state.registry.store().reader().acquire().await?;
    let steps = rotation.steps(&mut reader).await?;
    drop(reader);
    let plan = &rotation.plan;
    let (stragglers, nodes) = if plan.stage.is_final() {
        (Vec::new(), Vec::new())
    } else {
        let waited = Duration::from_millis(rotation.waited_ms);
        let blockers = plan.blockers(&world(state, rotation, waited).await?);
        let nodes = nodes(state, &blockers).await?;
        (blockers, nodes)
    };
    Ok(proto::RotationState {
        id: rotation.id,
        what: plan.what.name().to_owned(),
        server: rotation.server.clone(),
        stage: plan.stage.name().to_owned(),
        goal: plan.goal.name().to_owned(),
        incoming: rotation.incoming.clone(),
        compromised: rotation.compromised,
        started_ms: rotation.started_ms,
        changed_ms: rotation.changed_ms,
        steps: steps.into_iter().map(step).collect(),
        stragglers: stragglers.iter().map(straggler).collect(),
        nodes,
    })
}

async fn nodes(state: &State, blockers: &[Blocker]) -> Result<Vec<proto::RotationNode>, Error> {
    let waited_for: HashSet<&str> = blockers.iter().map(Blocker::subject).collect();
    let all = state
        .registry
        .nodes_for_operators(&state.now().deny)
        .await?;
    let counted = all.iter().filter(|node| counts(node));
    Ok(counted
        .map(|node| seen(state, node, !waited_for.contains(node.name.as_str())))
        .collect())
}

fn seen(state: &State, node: &Node, confirmed: bool) -> proto::RotationNode {
    proto::RotationNode {
        name: node.name.to_string(),
        connected: state.is_connected(&node.name),
        seen_at_ms: node.seen_at_ms.unwrap_or(0),
        acknowledged: node.acknowledged,
        confirmed,
        problem: node.problem.clone(),
    }
}

/// One authority.
pub(super) fn authority(state: &State, record: &Record) -> proto::Authority {
    proto::Authority {
        id: record.id.clone(),
        kind: record.kind.name().to_owned(),
        server: record.server.clone(),
        state: record.standing.name().to_owned(),
        parent: record.parent.clone(),
        not_before_ms: record.not_before_ms,
        not_after_ms: record.not_after_ms,
        created_ms: record.created_ms,
        compromised: record.compromised,
        key_here: state.authority.has_key(record),
    }
}

fn step(taken: Taken) -> proto::RotationStep {
    proto::RotationStep {
        step: taken.step,
        at_ms: taken.at_ms,
        by: taken.by,
        reason: taken.reason,
        passed: taken.passed,
    }
}

fn straggler(blocker: &Blocker) -> proto::Straggler {
    proto::Straggler {
        subject: blocker.subject().to_owned(),
        reason: blocker.to_string(),
        can_be_forced: blocker.can_be_forced(),
    }
}

/// What would happen, and who would hold it up, as things are now.
pub(super) async fn preview(
    state: &State,
    what: What,
    compromised: bool,
) -> Result<proto::PlanRotationReply, Error> {
    let all = state
        .registry
        .nodes_for_operators(&state.now().deny)
        .await?;
    let counted: Vec<&Node> = all.iter().filter(|node| counts(node)).collect();
    let mut breaks: Vec<proto::Straggler> = counted
        .iter()
        .filter_map(|node| hindrance(state, node))
        .collect();
    breaks.extend(left_behind(state, what, compromised).await?);
    Ok(proto::PlanRotationReply {
        steps: steps(state, what, compromised, counted.len()),
        breaks,
        nodes: counted
            .iter()
            .map(|node| {
                seen(
                    state,
                    node,
                    state.is_connected(&node.name) && node.problem.is_empty(),
                )
            })
            .collect(),
    })
}

/// Why a node would hold a rotation up.
fn hindrance(state: &State, node: &Node) -> Option<proto::Straggler> {
    let reason = if !node.problem.is_empty() {
        format!(
            "node {} could not apply the last update: {}",
            node.name, node.problem
        )
    } else if !state.is_connected(&node.name) {
        match node.seen_at_ms {
            Some(seen) => format!(
                "node {} is not connected, and was heard {} s ago: the rotation would wait for it, until it is back or `handfast node evict`",
                node.name,
                now_ms().saturating_sub(seen) / 1000
            ),
            None => format!("node {} has never been heard", node.name),
        }
    } else if node.authorities_in_use.is_empty() {
        format!(
            "node {} does not say what its SVIDs hang on (an old agent?): the rotation would wait for it before anything is taken away",
            node.name
        )
    } else {
        return None;
    };
    Some(proto::Straggler {
        subject: node.name.to_string(),
        reason,
        can_be_forced: true,
    })
}

/// Whom a rotation would leave behind, or what stands in its way.
async fn left_behind(
    state: &State,
    what: What,
    compromised: bool,
) -> Result<Vec<proto::Straggler>, Error> {
    let mut found = Vec::new();
    let mut say = |subject: &str, reason: String, can_be_forced| {
        found.push(proto::Straggler {
            subject: subject.to_owned(),
            reason,
            can_be_forced,
        });
    };
    let mut reader = state.registry.store().reader().acquire().await?;
    for other in Rotation::live(&mut reader).await? {
        let server = super::keep::rotation_server(what, state.authority.server());
        let overtaken = compromised && !other.plan.can_abort();
        if other.stands_in_the_way(what, server) && !overtaken {
            say(
                "rotation",
                format!(
                    "the rotation of the {} is {} and has to end first",
                    other.title(),
                    other.plan.stage.name()
                ),
                false,
            );
        }
    }
    drop(reader);
    let authorities = state.authority.authorities();
    if what == What::Root {
        let (_, tokens) = state.registry.counts().await?;
        if tokens > 0 {
            say(
                "tokens",
                format!(
                    "{tokens} open join tokens name the present root: they are void once it is {}",
                    if compromised { "superseded" } else { "revoked" }
                ),
                true,
            );
        }
        if compromised {
            say(
                "sleepers",
                "nodes that are off until the old root is revoked do not find the new one by themselves: they must join again with a new token".to_owned(),
                true,
            );
        }
        let key_here = authorities
            .active_root()
            .is_some_and(|root| state.authority.has_key(root));
        if !key_here {
            say(
                "root",
                "the root's key is not in this CA's folder: bring a new root with `handfast ca root prepare --root-certificate`".to_owned(),
                false,
            );
        }
    }
    for record in authorities.of(Kind::Issuing, Standing::Requested) {
        say(
            &record.server,
            format!(
                "server {} waits for the certificate of its issuing CA",
                record.server
            ),
            false,
        );
    }
    Ok(found)
}

fn steps(state: &State, what: What, compromised: bool, nodes: usize) -> Vec<String> {
    let servers = state.authority.authorities().servers().len();
    let lead = state.federation_lead().unwrap_or_default().as_secs();
    let partners = if lead > 0 && what != What::Issuing {
        format!(", and {lead} s for the partners of the federation to fetch it")
    } else {
        String::new()
    };
    let prepared = match (what, compromised) {
        (What::Root, false) => {
            "a new root is made, signed by the present one too, and published in the bundle; every server gets an issuing CA under it"
        }
        (What::Root, true) => {
            "a new root is made and published in the bundle; the present one does not sign it; every server gets an issuing CA under it"
        }
        (What::Issuing, _) => "a new issuing CA of this server is made under the root",
        (What::Jwt, _) => "a new JWT key of this server is made and published in the bundle",
    };
    let confirmed = match what {
        What::Issuing => "nobody has to know it before it signs".to_owned(),
        _ => format!(
            "all nodes ({nodes}) and servers ({servers}) confirm that they know it{partners}"
        ),
    };
    let tokens = state.authority.lifetimes().jwt;
    let gone = match what {
        What::Jwt => {
            format!("{tokens} s later, when its last token has ended, it leaves the bundle")
        }
        What::Root => "the old root leaves the bundle".to_owned(),
        What::Issuing => "the old issuing CA is retired".to_owned(),
    };
    vec![
        format!("{}: {prepared}", Stage::Prepared.name()),
        confirmed,
        format!(
            "{}: from now on only the new one signs; agents replace at once what hangs on the old",
            Stage::Activated.name()
        ),
        format!("all nodes ({nodes}) confirm that nothing of theirs hangs on the old one"),
        format!(
            "{}: the old one's private key is destroyed",
            Stage::Tainted.name()
        ),
        format!("{}: {gone}", Stage::Revoked.name()),
    ]
}
