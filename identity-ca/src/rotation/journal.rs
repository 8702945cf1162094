//! Rotations in the store: each step is recorded in the transaction of its effect, so that a crash leaves it done or
//! not begun, and whoever starts next goes on from there.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::plan::{Blocker, Forced, Plan, Stage, What};
use crate::authority::{Kind, Record, Standing};
use crate::registry::{Change, Section, int, uint};
use crate::{Error, now_ms};

/// A rotation as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rotation {
    pub(crate) id: u64,
    /// Whose issuing CA or JWT key; empty for roots.
    pub(crate) server: String,
    /// The new root, issuing CA or JWT key.
    pub(crate) incoming: String,
    pub(crate) compromised: bool,
    pub(crate) waited_ms: u64,
    pub(crate) started_ms: u64,
    pub(crate) changed_ms: u64,
    pub(crate) plan: Plan,
}

/// A step that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) step: String,
    pub(crate) at_ms: u64,
    pub(crate) by: String,
    pub(crate) reason: String,
    /// Whom it passed by force.
    pub(crate) passed: Vec<String>,
}

/// Who wants a step, and why.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) by: String,
    pub(crate) reason: String,
}

/// A rotation that is to begin.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) what: What,
    pub(crate) server: String,
    pub(crate) goal: Stage,
    pub(crate) compromised: bool,
    /// Takes over what another of its kind, already activated, had not finished.
    pub(crate) overtake: bool,
    /// What was made for it, the new authority first.
    pub(crate) records: Vec<Record>,
}

impl Rotation {
    /// All that are under way.
    pub(crate) async fn live(store: &mut AnyConnection) -> Result<Vec<Self>, Error> {
        let sql = "SELECT id, what, server, stage, goal, incoming, compromised, revision, waited_ms, forced, started_ms, changed_ms FROM rotations WHERE stage NOT IN ('revoked', 'aborted', 'overtaken') ORDER BY id";
        let rows = sqlx::query(sql).fetch_all(store).await?;
        rows.iter().map(Self::read).collect()
    }

    /// The newest, finished ones too.
    pub(crate) async fn recent(store: &mut AnyConnection) -> Result<Vec<Self>, Error> {
        let sql = "SELECT id, what, server, stage, goal, incoming, compromised, revision, waited_ms, forced, started_ms, changed_ms FROM rotations ORDER BY id DESC LIMIT 50";
        let rows = sqlx::query(sql).fetch_all(store).await?;
        rows.iter().map(Self::read).collect()
    }

    /// The steps that were taken, first to last.
    pub(crate) async fn steps(&self, store: &mut AnyConnection) -> Result<Vec<Taken>, Error> {
        let rows = sqlx::query(
            "SELECT step, at_ms, by_whom, reason, passed FROM rotation_steps WHERE rotation = $1 ORDER BY number",
        )
        .bind(int(self.id))
        .fetch_all(store)
        .await?;
        rows.iter()
            .map(|row| {
                let passed: String = row.try_get("passed")?;
                Ok(Taken {
                    step: row.try_get("step")?,
                    at_ms: uint(row.try_get("at_ms")?),
                    by: row.try_get("by_whom")?,
                    reason: row.try_get("reason")?,
                    passed: serde_json::from_str(&passed).unwrap_or_default(),
                })
            })
            .collect()
    }

    /// Begins a rotation: the new authority is in the store, and agents hear of it.
    pub(crate) async fn begin(
        change: &mut Change,
        order: &Order,
        wish: &Wish,
    ) -> Result<Self, Error> {
        let (what, server) = (order.what, order.server.as_str());
        for other in Self::live(change).await? {
            if !other.stands_in_the_way(what, server) {
                continue;
            }
            // A root that is compromised does not wait for an issuing CA that it replaces anyhow.
            let replaced = what == What::Root || other.plan.what == what && other.server == server;
            if order.overtake && replaced && !other.plan.can_abort() {
                other.step(change, Stage::Overtaken, wish, &[]).await?;
            } else {
                return Err(other.first());
            }
        }
        let incoming = order.records.first().map(|record| record.id.clone());
        let incoming =
            incoming.ok_or_else(|| Error::invalid("rotation", "nothing was made for it"))?;
        for record in &order.records {
            record.insert(change).await?;
        }
        let revision = change.number(what.section()).await?;
        let now = now_ms();
        sqlx::query(
            "INSERT INTO rotations (id, what, server, stage, goal, incoming, compromised, revision, waited_ms, forced, started_ms, changed_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, '', $9, $9)",
        )
        .bind(int(revision))
        .bind(what.name())
        .bind(server)
        .bind(Stage::Prepared.name())
        .bind(order.goal.name())
        .bind(&incoming)
        .bind(i64::from(order.compromised))
        .bind(int(revision))
        .bind(int(now))
        .execute(&mut **change)
        .await?;
        let rotation = Self {
            id: revision,
            server: server.to_owned(),
            incoming,
            compromised: order.compromised,
            waited_ms: 0,
            started_ms: now,
            changed_ms: now,
            plan: Plan {
                what,
                stage: Stage::Prepared,
                goal: order.goal,
                revision,
                forced: None,
            },
        };
        rotation
            .note(change, Stage::Prepared.name(), wish, &[])
            .await?;
        Ok(rotation)
    }

    /// Takes a step, if nobody else has taken it meanwhile.
    pub(crate) async fn step(
        &self,
        change: &mut Change,
        step: Stage,
        wish: &Wish,
        passed: &[Blocker],
    ) -> Result<bool, Error> {
        let claimed = sqlx::query("UPDATE rotations SET stage = $1 WHERE id = $2 AND stage = $3")
            .bind(step.name())
            .bind(int(self.id))
            .bind(self.plan.stage.name())
            .execute(&mut **change)
            .await?
            .rows_affected();
        if claimed != 1 {
            return Ok(false);
        }
        let revision = self.take_effect(change, step).await?;
        sqlx::query(
            "UPDATE rotations SET revision = $1, waited_ms = 0, forced = '', changed_ms = $2 WHERE id = $3",
        )
        .bind(int(revision))
        .bind(int(now_ms()))
        .bind(int(self.id))
        .execute(&mut **change)
        .await?;
        self.note(change, step.name(), wish, passed).await?;
        Ok(true)
    }

    /// How far it goes on by itself, and whether the next step passes stragglers.
    pub(crate) async fn steer(
        &self,
        change: &mut Change,
        goal: Stage,
        forced: Option<&Forced>,
        wish: &Wish,
    ) -> Result<(), Error> {
        let kept = forced.map(serde_json::to_string).transpose();
        let kept = kept.map_err(|error| Error::invalid("rotation", error.to_string()))?;
        let steered =
            sqlx::query("UPDATE rotations SET goal = $1, forced = $2 WHERE id = $3 AND stage = $4")
                .bind(goal.name())
                .bind(kept.unwrap_or_default())
                .bind(int(self.id))
                .bind(self.plan.stage.name())
                .execute(&mut **change)
                .await?
                .rows_affected();
        if steered != 1 {
            return Err(Error::Denied(
                "the rotation has just gone on by itself; look at it again: nothing was changed"
                    .to_owned(),
            ));
        }
        let Some(forced) = forced else {
            return self.note(change, "resume", wish, &[]).await;
        };
        let named: Vec<String> = forced
            .nodes
            .iter()
            .map(|node| format!("node {node}"))
            .collect();
        self.write_note(change, "force", wish, &named).await
    }

    /// Keeps how long the stage has lasted. Never less than what is known already.
    pub(crate) async fn waited(&self, change: &mut Change, waited_ms: u64) -> Result<(), Error> {
        sqlx::query(
            "UPDATE rotations SET waited_ms = $1 WHERE id = $2 AND stage = $3 AND waited_ms < $1",
        )
        .bind(int(waited_ms))
        .bind(int(self.id))
        .bind(self.plan.stage.name())
        .execute(&mut **change)
        .await?;
        Ok(())
    }

    /// Puts a certificate in the place of its request, in the plan too.
    pub(crate) async fn answer(
        change: &mut Change,
        request: &str,
        record: &Record,
    ) -> Result<(), Error> {
        Record::delete(change, request).await?;
        record.insert(change).await?;
        sqlx::query("UPDATE rotations SET incoming = $1 WHERE incoming = $2")
            .bind(&record.id)
            .bind(request)
            .execute(&mut **change)
            .await?;
        change.number(Section::Retired).await?;
        Ok(())
    }

    /// For people: which one it is.
    pub(crate) fn title(&self) -> String {
        match self.plan.what {
            What::Root => What::Root.title().to_owned(),
            what => format!("{} of server {}", what.title(), self.server),
        }
    }

    /// Another one cannot begin before this one has ended.
    fn first(&self) -> Error {
        let kind = self.plan.what.name();
        let back = match self.plan.can_abort() {
            true => {
                format!("take it back (`handfast ca rotate --what {kind} --abort --reason TEXT`)")
            }
            false => format!(
                "pass whoever it waits for (`handfast ca rotate --what {kind} --force --reason TEXT`)"
            ),
        };
        Error::Denied(format!(
            "the rotation of the {} is {}: finish it (`handfast ca rotate --what {kind} --resume`) or {back} first; nothing was changed",
            self.title(),
            self.plan.stage.name()
        ))
    }

    /// Does an authority belong to what this rotation replaces?
    pub(crate) fn replaces(&self, record: &Record) -> bool {
        match self.plan.what {
            What::Root => match record.kind {
                Kind::Root => record.id != self.incoming,
                Kind::Issuing => record.parent != self.incoming,
                Kind::Jwt => false,
            },
            What::Issuing => {
                record.kind == Kind::Issuing
                    && record.server == self.server
                    && record.id != self.incoming
            }
            What::Jwt => {
                record.kind == Kind::Jwt
                    && record.server == self.server
                    && record.id != self.incoming
            }
        }
    }

    /// Is an authority what this rotation brings?
    fn brings(&self, record: &Record) -> bool {
        record.id == self.incoming
            || self.plan.what == What::Root
                && record.kind == Kind::Issuing
                && record.parent == self.incoming
    }

    /// Must it end before another may begin?
    pub(crate) fn stands_in_the_way(&self, what: What, server: &str) -> bool {
        match (self.plan.what, what) {
            (What::Jwt, What::Jwt) | (What::Issuing, What::Issuing) => self.server == server,
            (What::Jwt, _) | (_, What::Jwt) => false,
            // A root brings issuing CAs along.
            _ => true,
        }
    }

    /// Moves the authorities on; gives the number under which agents hear of it.
    async fn take_effect(&self, change: &mut Change, step: Stage) -> Result<u64, Error> {
        let records = Record::all(change).await?;
        let section = self.plan.what.section();
        match step {
            Stage::Activated => {
                for record in &records {
                    if self.brings(record) && record.standing == Standing::Prepared {
                        Record::stand(change, &record.id, Standing::Active).await?;
                    } else if self.replaces(record) && record.standing == Standing::Active {
                        Record::stand(change, &record.id, Standing::Superseded).await?;
                        if self.compromised && record.kind == Kind::Root {
                            Record::compromise(change, &record.id).await?;
                        }
                    }
                }
                if self.plan.what != What::Jwt {
                    // The deny list is signed anew, by who signs from now on.
                    change.number(Section::Deny).await?;
                }
                if self.compromised {
                    change.number(Section::Bundle).await?;
                }
                change.number(Section::Retired).await
            }
            Stage::Tainted => {
                self.stand_all(change, &records, Standing::Superseded, Standing::Tainted)
                    .await?;
                change.number(Section::Retired).await
            }
            Stage::Revoked => {
                self.stand_all(change, &records, Standing::Tainted, Standing::Retired)
                    .await?;
                change.number(section).await
            }
            Stage::Aborted => {
                for record in records.iter().filter(|record| self.brings(record)) {
                    Record::delete(change, &record.id).await?;
                }
                change.number(section).await
            }
            // The plan that overtakes it replaces all that it brought and left.
            Stage::Overtaken => change.number(section).await,
            Stage::Prepared => Err(Error::invalid("rotation", "it is prepared already")),
        }
    }

    async fn stand_all(
        &self,
        change: &mut Change,
        records: &[Record],
        from: Standing,
        to: Standing,
    ) -> Result<(), Error> {
        let moving = records
            .iter()
            .filter(|record| self.replaces(record) && record.standing == from);
        for record in moving {
            Record::stand(change, &record.id, to).await?;
        }
        Ok(())
    }

    pub(super) async fn note(
        &self,
        change: &mut Change,
        step: &str,
        wish: &Wish,
        passed: &[Blocker],
    ) -> Result<(), Error> {
        let passed: Vec<String> = passed.iter().map(ToString::to_string).collect();
        self.write_note(change, step, wish, &passed).await
    }

    async fn write_note(
        &self,
        change: &mut Change,
        step: &str,
        wish: &Wish,
        passed: &[String],
    ) -> Result<(), Error> {
        let passed = serde_json::to_string(passed)
            .map_err(|error| Error::invalid("rotation", error.to_string()))?;
        sqlx::query(
            "INSERT INTO rotation_steps (rotation, number, step, at_ms, by_whom, reason, passed)
             VALUES ($1, (SELECT count(*) + 1 FROM rotation_steps WHERE rotation = $1), $2, $3, $4, $5, $6)",
        )
        .bind(int(self.id))
        .bind(step)
        .bind(int(now_ms()))
        .bind(&wish.by)
        .bind(&wish.reason)
        .bind(passed)
        .execute(&mut **change)
        .await?;
        Ok(())
    }

    fn read(row: &AnyRow) -> Result<Self, Error> {
        let text = |column| row.try_get::<String, _>(column);
        let number = |column| row.try_get::<i64, _>(column).map(uint);
        let (what, stage, goal) = (text("what")?, text("stage")?, text("goal")?);
        let unknown = |what: &str| Error::invalid("rotation in the store", what);
        let forced = text("forced")?;
        Ok(Self {
            id: number("id")?,
            server: text("server")?,
            incoming: text("incoming")?,
            compromised: number("compromised")? != 0,
            waited_ms: number("waited_ms")?,
            started_ms: number("started_ms")?,
            changed_ms: number("changed_ms")?,
            plan: Plan {
                what: what.parse().map_err(|()| unknown(&what))?,
                stage: stage.parse().map_err(|()| unknown(&stage))?,
                goal: goal.parse().map_err(|()| unknown(&goal))?,
                revision: number("revision")?,
                // What cannot be read forces nothing: an operator says it again.
                forced: serde_json::from_str(&forced).ok(),
            },
        })
    }
}

/// How far servers have taken in what they sign with.
pub(crate) async fn signers(store: &mut AnyConnection) -> Result<Vec<(String, u64)>, Error> {
    let rows: Vec<(String, i64)> = sqlx::query_as("SELECT server, applied FROM signers")
        .fetch_all(store)
        .await?;
    Ok(rows
        .into_iter()
        .map(|(server, applied)| (server, uint(applied)))
        .collect())
}

/// This server signs by what was changed up to `applied`.
pub(crate) async fn applied(change: &mut Change, server: &str, applied: u64) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO signers (server, applied, seen_ms) VALUES ($1, $2, $3)
         ON CONFLICT (server) DO UPDATE SET applied = $2, seen_ms = $3",
    )
    .bind(server)
    .bind(int(applied))
    .bind(int(now_ms()))
    .execute(&mut **change)
    .await?;
    Ok(())
}

impl What {
    /// What changes for agents when such an authority comes or goes: issuing
    /// CAs do not stand in the bundle.
    fn section(self) -> Section {
        match self {
            Self::Root | Self::Jwt => Section::Bundle,
            Self::Issuing => Section::Retired,
        }
    }
}
