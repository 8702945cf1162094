//! The registry for a backup, and the end of a recovery.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::operator::check_reason;
use super::state::State;
use crate::audit::Act;
use crate::backup::rows;
use crate::model::Role;
use crate::proto;
use crate::proto::backup_server::Backup;

/// How long an operator may take to take a piece.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Service {
    state: Arc<State>,
}

pub(super) fn service(state: Arc<State>) -> Service {
    Service { state }
}

#[tonic::async_trait]
impl Backup for Service {
    type ReadBackupStream = ReceiverStream<Result<proto::BackupPart, Status>>;

    async fn read_backup(
        &self,
        request: Request<proto::ReadBackupRequest>,
    ) -> Result<Response<Self::ReadBackupStream>, Status> {
        let by = self.state.operator(&request, Role::Admin)?;
        let with_keys = request.into_inner().with_keys;
        // Before the first row leaves.
        let act = Act::done("backup.write", &by, "registry").with("with_keys", with_keys);
        self.state.audit.record(vec![act]).await?;
        let (sender, parts) = mpsc::channel(4);
        let state = Arc::clone(&self.state);
        tokio::spawn(async move {
            let store = state.registry.store();
            let dumped = rows::dump(store, &state.authority, |lines| {
                let sender = sender.clone();
                async move {
                    let sent = sender.send(Ok(proto::BackupPart { lines }));
                    // Who takes nothing any more has gone, or might as well have.
                    let sent = tokio::time::timeout(PATIENCE, sent).await;
                    sent.is_ok_and(|sent| sent.is_ok())
                }
            })
            .await;
            if let Err(error) = dumped {
                // An operator who has gone does not need to know.
                let _ = sender.send(Err(error.into())).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(parts)))
    }

    async fn finish_recovery(
        &self,
        request: Request<proto::FinishRecoveryRequest>,
    ) -> Result<Response<proto::FinishRecoveryReply>, Status> {
        let by = self.state.operator(&request, Role::Admin)?;
        let reason = request.into_inner().reason;
        check_reason(&reason)?;
        self.state.take_heard_denials().await?;
        let finished = self
            .state
            .change(|state| async move {
                let finished = state.registry.finish_recovery().await?;
                // Known before the list that agents wait for is pushed.
                state.look_at_recovery().await?;
                Ok(finished)
            })
            .await;
        let finished = self
            .state
            .conclude(
                "backup.finish-recovery",
                &by,
                "registry",
                finished,
                |act, _| act.with("reason", reason),
            )
            .await?;
        Ok(Response::new(proto::FinishRecoveryReply { finished }))
    }
}
