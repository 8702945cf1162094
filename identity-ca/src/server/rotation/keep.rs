//! The runner of rotations: does what the plans say, whenever something changes. Every server runs one; the store
//! decides who takes a step.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Start, start};
use crate::audit::Act;
use crate::authority::{Kind, Record, Standing};
use crate::failpoint;
use crate::model::Node;
use crate::registry::Section;
use crate::rotation::journal::{self, Rotation, Wish};
use crate::rotation::plan::{Blocker, Next, Stage, What, World};
use crate::rotation::run::{Facts, due};
use crate::server::state::State;
use crate::{Error, now_ms};

/// How often plans are looked at when nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// Confirmations that come together are looked at together.
const GATHER: Duration = Duration::from_millis(10);
/// A crash costs at most so much of what was waited.
const SAVE: Duration = Duration::from_secs(5);
/// A plan that waits for longer is worth an alarm.
const STALLED: Duration = Duration::from_secs(3600);

/// Drives rotations for as long as the server runs.
pub(in crate::server) async fn keep(state: Arc<State>) {
    let mut snapshots = state.snapshot.subscribe();
    let mut runner = Runner::default();
    loop {
        let began = Instant::now();
        if let Err(error) = runner.round(&state).await {
            state.notice(&error);
            tracing::warn!(%error, "rotation; it is tried again");
            tokio::time::sleep(TICK).await;
        }
        // To look at all nodes takes its time: most of it belongs to what they say.
        let rest = (began.elapsed() * 4).max(GATHER);
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = state.rotation.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
        tokio::time::sleep(rest).await;
    }
}

#[derive(Default)]
struct Runner {
    waits: HashMap<(u64, Stage), Waited>,
    /// What the store knows that this server signs by.
    reported: u64,
    /// Requests of other servers that were not worth an answer.
    refused: Vec<String>,
}

/// How long a stage has lasted.
struct Waited {
    since: Instant,
    before: Duration,
    saved: Duration,
    alarmed: bool,
}

impl Waited {
    fn now(&self) -> Duration {
        self.before + self.since.elapsed()
    }
}

impl Runner {
    async fn round(&mut self, state: &Arc<State>) -> Result<(), Error> {
        state.certificate.renew_if_due(&state.authority)?;
        if state.authority.in_touch().is_err() {
            // Others do it, who know what the store says and still belong to it.
            return Ok(());
        }
        self.report(state).await?;
        self.answer_requests(state).await?;
        let live = live(state).await?;
        schedule(state, &live).await;
        self.waits
            .retain(|(id, stage), _| live.iter().any(|r| r.id == *id && r.plan.stage == *stage));
        for rotation in live {
            self.drive(state, rotation).await?;
        }
        Ok(())
    }

    /// Tells the other servers how far this one has come.
    async fn report(&mut self, state: &Arc<State>) -> Result<(), Error> {
        let revisions = state.now().revisions;
        let applied = revisions.bundle.max(revisions.retired);
        if applied == self.reported {
            return Ok(());
        }
        let mut change = state.registry.store().begin().await?;
        journal::applied(&mut change, state.authority.server(), applied).await?;
        change.commit().await?;
        self.reported = applied;
        Ok(())
    }

    /// Signs what other servers have asked for, if the root's key is here.
    async fn answer_requests(&mut self, state: &Arc<State>) -> Result<(), Error> {
        let authorities = state.authority.authorities();
        for request in authorities.of(Kind::Issuing, Standing::Requested) {
            if self.refused.contains(&request.id) {
                continue;
            }
            match state.authority.answer(request) {
                Ok(None) => {}
                Ok(Some(record)) => install(state, request.id.clone(), record).await?,
                Err(error) => {
                    self.refused.push(request.id.clone());
                    state.registry.alarm(&error.to_string()).await?;
                }
            }
        }
        Ok(())
    }

    async fn drive(&mut self, state: &Arc<State>, rotation: Rotation) -> Result<(), Error> {
        let plan = &rotation.plan;
        if plan.what == What::Root && plan.stage == Stage::Prepared {
            ensure_issuing(state, &rotation).await?;
        }
        let waited = self.waited(state, &rotation).await?;
        let world = world(state, &rotation, waited).await?;
        match plan.next(&world) {
            Next::Rest => Ok(()),
            Next::Wait(blockers) => self.stalled(state, &rotation, waited, &blockers).await,
            Next::Step(step, passed) => {
                let wish = Wish {
                    by: "ca".to_owned(),
                    reason: plan
                        .forced
                        .clone()
                        .map(|forced| forced.reason)
                        .unwrap_or_default(),
                };
                take(state, rotation, step, wish, passed).await
            }
        }
    }

    /// By a clock that does not jump; kept in the store now and then, so that a restart does not wait from the start.
    async fn waited(&mut self, state: &Arc<State>, rotation: &Rotation) -> Result<Duration, Error> {
        let before = Duration::from_millis(rotation.waited_ms);
        let key = (rotation.id, rotation.plan.stage);
        let waited = self.waits.entry(key).or_insert_with(|| Waited {
            since: Instant::now(),
            before,
            saved: before,
            alarmed: false,
        });
        let now = waited.now();
        if now >= waited.saved + SAVE {
            let mut change = state.registry.store().begin().await?;
            let ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            rotation.waited(&mut change, ms).await?;
            change.commit().await?;
            waited.saved = now;
        }
        Ok(now)
    }

    async fn stalled(
        &mut self,
        state: &Arc<State>,
        rotation: &Rotation,
        waited: Duration,
        blockers: &[Blocker],
    ) -> Result<(), Error> {
        let key = (rotation.id, rotation.plan.stage);
        let Some(known) = self.waits.get_mut(&key) else {
            return Ok(());
        };
        if waited < STALLED || known.alarmed {
            return Ok(());
        }
        known.alarmed = true;
        let names: Vec<&str> = blockers.iter().map(Blocker::subject).take(20).collect();
        let detail = format!(
            "the rotation of the {} has waited for an hour, for {}",
            rotation.title(),
            names.join(", ")
        );
        state.registry.alarm(&detail).await
    }
}

/// All rotations that are under way.
pub(super) async fn live(state: &State) -> Result<Vec<Rotation>, Error> {
    let mut reader = state.registry.store().reader().acquire().await?;
    Rotation::live(&mut reader).await
}

/// What a rotation decides by.
pub(super) async fn world(
    state: &State,
    rotation: &Rotation,
    waited: Duration,
) -> Result<World, Error> {
    let nodes: Vec<Node> = state
        .registry
        .nodes_for_operators(&state.now().deny)
        .await?;
    let mut reader = state.registry.store().reader().acquire().await?;
    let applied = journal::signers(&mut reader).await?;
    let facts = Facts {
        nodes: &nodes,
        authorities: &state.authority.authorities(),
        applied: &applied,
        partners: state.federation_lead().unwrap_or_default(),
        tokens: tokens(state, rotation),
    };
    Ok(rotation.world(&facts, waited))
}

/// The longest life that a token of the old key may have.
fn tokens(state: &State, rotation: &Rotation) -> Duration {
    let usual = state.authority.lifetimes().jwt;
    if rotation.plan.what != What::Jwt {
        return Duration::from_secs(usual);
    }
    let longer = |ttl: Option<u32>| ttl.map(u64::from).filter(|ttl| *ttl > usual);
    let entries = state
        .now()
        .entries
        .list(|entry| longer(entry.jwt_ttl_seconds).is_some());
    let longest = entries
        .iter()
        .filter_map(|entry| longer(entry.jwt_ttl_seconds))
        .max();
    Duration::from_secs(longest.unwrap_or(usual))
}

/// Takes a step, unless another server was faster.
async fn take(
    state: &Arc<State>,
    rotation: Rotation,
    step: Stage,
    wish: Wish,
    passed: Vec<Blocker>,
) -> Result<(), Error> {
    let act = act(step);
    let names: Vec<String> = passed.iter().map(ToString::to_string).collect();
    let (title, reason) = (rotation.title(), wish.reason.clone());
    let id = rotation.id;
    let place = format!("{}-{}", rotation.plan.what.name(), step.name());
    failpoint::here(&format!("before-{place}"));
    let taken = state
        .change(move |state| async move {
            let mut change = state.registry.store().begin().await?;
            let taken = rotation.step(&mut change, step, &wish, &passed).await?;
            failpoint::here(&format!("within-{place}"));
            change.commit().await?;
            failpoint::here(&format!("after-{place}"));
            Ok(taken)
        })
        .await?;
    if taken {
        let act = Act::done(act, "ca", title)
            .with("rotation", id)
            .with("reason", reason)
            .with("passed", names);
        state.audit.record(vec![act]).await?;
    }
    Ok(())
}

pub(super) fn act(step: Stage) -> &'static str {
    match step {
        Stage::Prepared => "rotation.prepare",
        Stage::Activated => "rotation.activate",
        Stage::Tainted => "rotation.taint",
        Stage::Revoked => "rotation.revoke",
        Stage::Aborted => "rotation.abort",
        Stage::Overtaken => "rotation.overtake",
    }
}

/// Every server needs an issuing CA under the new root before it signs.
async fn ensure_issuing(state: &Arc<State>, rotation: &Rotation) -> Result<(), Error> {
    let authorities = state.authority.authorities();
    let server = state.authority.server().to_owned();
    let incoming = rotation.incoming.clone();
    let there = |record: &Record| {
        record.kind == Kind::Issuing && record.server == server && record.parent == incoming
    };
    let Some(root) = authorities.find(&incoming) else {
        return Ok(());
    };
    let signs = authorities.active(Kind::Issuing, &server).is_some();
    if !signs || authorities.all().iter().any(there) {
        return Ok(());
    }
    let made = state.authority.make_issuing(root)?;
    failpoint::here("issuing-key-written");
    let record = made.clone();
    let root = incoming.clone();
    let inserted = state
        .change(move |state| async move {
            let mut change = state.registry.store().begin().await?;
            let records = Record::all(&mut change).await?;
            let wanted = records
                .iter()
                .any(|known| known.id == root && known.standing == Standing::Prepared);
            // Whoever was removed meanwhile does not come back by this.
            let signs = |known: &Record| {
                known.kind == Kind::Issuing
                    && known.server == record.server
                    && known.standing == Standing::Active
            };
            let wanted = wanted && records.iter().any(signs);
            if wanted {
                record.insert(&mut change).await?;
                change.number(Section::Retired).await?;
                change.commit().await?;
            }
            Ok(wanted)
        })
        .await;
    // An error may hide a commit: then the key is needed.
    if matches!(inserted, Ok(false)) {
        state.authority.discard(&made);
    }
    inserted.map(drop)
}

/// Takes a certificate in that answers a request.
pub(super) async fn install(
    state: &Arc<State>,
    request: String,
    record: Record,
) -> Result<(), Error> {
    let act = Act::done("issuing.install", "ca", &record.server).with("authority", &*record.id);
    state
        .change(move |state| async move {
            let mut change = state.registry.store().begin().await?;
            let records = Record::all(&mut change).await?;
            let open =
                |known: &Record| known.id == request && known.standing == Standing::Requested;
            if records.iter().any(open) {
                Rotation::answer(&mut change, &request, &record).await?;
                change.commit().await?;
            }
            Ok(())
        })
        .await?;
    state.audit.record(vec![act]).await
}

/// Begins what is due, by the same plan as everything else.
async fn schedule(state: &Arc<State>, live: &[Rotation]) {
    let authorities = state.authority.authorities();
    let has_root_key = authorities
        .active_root()
        .is_some_and(|root| state.authority.has_key(root));
    let server = state.authority.server();
    let lifetimes = state.authority.lifetimes();
    for (what, overtake) in due(&authorities, server, lifetimes, has_root_key, now_ms()) {
        let busy = live.iter().any(|rotation| {
            let same = rotation.plan.what == what;
            rotation.stands_in_the_way(what, rotation_server(what, server))
                && !(overtake && same && !rotation.plan.can_abort())
        });
        if busy {
            continue;
        }
        let order = Start {
            what,
            goal: Stage::Revoked,
            compromised: false,
            overtake,
            brought: None,
            wish: Wish {
                by: "schedule".to_owned(),
                reason: "its time has come".to_owned(),
            },
        };
        if let Err(error) = start(state, order).await {
            tracing::error!(%error, what = what.name(), "a scheduled rotation does not begin");
        }
    }
}

/// Roots belong to all servers.
pub(super) fn rotation_server(what: What, server: &str) -> &str {
    match what {
        What::Root => "",
        What::Issuing | What::Jwt => server,
    }
}
