//! What is lost while keys change under load: a node's tunnel keys on either side, and sessions.

use std::time::Duration;

use anyhow::Result;
use handfast_agent::admin::{PeerInfo, Request, RotationInfo};

use super::stream::{Flow, RATE};
use super::{Kind, Stage};
use crate::harness::wait;
use crate::report::{Figure, Goal, figure};

/// How long the flow goes on before and after each change.
const QUIET: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(120);

/// Datagrams lost: while nothing changes, and while everything does.
pub fn measure(kind: Kind) -> Result<Vec<Figure>> {
    let stage = Stage::build(kind)?;
    let mut undisturbed = Vec::new();
    let mut lost = Vec::new();
    for _ in 0..3 {
        let flow = Flow::start(&stage.client, &stage.server, &stage.address())?;
        wait::pause(2 * QUIET)?;
        let carried = flow.end()?;
        undisturbed.push((carried.sent - carried.arrived) as f64);

        let flow = Flow::start(&stage.client, &stage.server, &stage.address())?;
        wait::pause(QUIET)?;
        let changes = change_everything(&stage)?;
        wait::pause(QUIET)?;
        let carried = flow.end()?;
        eprintln!("{carried:?} over {changes} changes");
        lost.push((carried.sent - carried.arrived) as f64);
    }
    let how = format!(
        "{} keys of both nodes, one after the other, and their sessions, under {RATE} UDP packets/s",
        kind.word()
    );
    let plain = format!("the same {RATE} UDP packets/s for as long while nothing changes");
    let [changing, still] = names(kind);
    Ok(vec![
        figure(changing, "", Goal::AtMost(0.0), lost, &how)?,
        figure(still, "", Goal::None, undisturbed, &plain)?,
    ])
}

/// What is lost while keys change, and while nothing does, by its names.
fn names(kind: Kind) -> [&'static str; 2] {
    match kind {
        Kind::WireGuard => ["tunnel.rotation_lost", "tunnel.undisturbed_lost"],
        Kind::Ipsec => ["tunnel.esp_rotation_lost", "tunnel.esp_undisturbed_lost"],
        Kind::Userspace => [
            "tunnel.userspace_rotation_lost",
            "tunnel.userspace_undisturbed_lost",
        ],
    }
}

/// How many changes there were.
fn change_everything(stage: &Stage) -> Result<u32> {
    for number in [1, 2] {
        rotate(stage, number)?;
        wait::pause(QUIET)?;
    }
    let before = epoch(stage, 1)?;
    let _: u64 = stage.mesh.ask(1, &Request::PairFlush)?;
    wait::until("a session's successor", LONG, || {
        Ok((epoch(stage, 1)? > before).then_some(()))
    })?;
    Ok(3)
}

/// The newest epoch that a node has with a peer.
fn epoch(stage: &Stage, number: u8) -> Result<u32> {
    let peers: Vec<PeerInfo> = stage.mesh.ask(number, &Request::TunnelStatus)?;
    Ok(peers.iter().map(|peer| peer.epoch).max().unwrap_or(0))
}

/// Changes a node's keys, and waits until its peers have followed.
fn rotate(stage: &Stage, number: u8) -> Result<()> {
    let before = epoch(stage, number)?;
    let begun: RotationInfo = stage.mesh.ask(number, &Request::TunnelRotate)?;
    let Some(key) = begun.new_key else {
        // In place; or by a new session, where nothing was heard from the peer under its present key yet.
        return wait::until("ESP keys to change", LONG, || {
            let new = begun.by_new_session.is_empty() || epoch(stage, number)? > before;
            Ok(new.then_some(()))
        });
    };
    wait::until("peers to follow a new key", LONG, || {
        let peers: Vec<PeerInfo> = stage.mesh.ask(number, &Request::TunnelStatus)?;
        let mut moved = peers
            .iter()
            .map(|peer| peer.own_key.as_deref() == Some(&key) && peer.other_device.is_none());
        Ok((!peers.is_empty() && moved.all(|moved| moved)).then_some(()))
    })
}
