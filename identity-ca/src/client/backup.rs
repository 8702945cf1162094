//! An operator takes a backup, or ends a recovery.

use tonic::transport::Channel;

use super::admin::Admin;
use super::connect::bounded;
use super::refused;
use crate::backup::Writer;
use crate::proto::backup_client::BackupClient;
use crate::{Error, proto};

impl Admin {
    /// Writes the registry at one moment into a backup, without private keys.
    /// `with_keys` is for the audit log: the caller adds them.
    pub async fn backup(&mut self, to: &mut Writer, with_keys: bool) -> Result<(), Error> {
        let request = proto::ReadBackupRequest { with_keys };
        // A large registry takes longer than other calls may.
        let reply = self.backup_client().read_backup(request).await;
        let mut parts = reply.map_err(refused)?.into_inner();
        while let Some(part) = parts.message().await.map_err(refused)? {
            to.write(&part.lines)?;
        }
        Ok(())
    }

    /// Ends the wait of a restored CA; says whether it waited.
    pub async fn finish_recovery(&mut self, reason: &str) -> Result<bool, Error> {
        let request = proto::FinishRecoveryRequest {
            reason: reason.to_owned(),
        };
        let reply = self.backup_client().finish_recovery(bounded(request)).await;
        Ok(reply.map_err(refused)?.into_inner().finished)
    }

    fn backup_client(&self) -> BackupClient<Channel> {
        BackupClient::new(self.channel.clone())
    }
}
