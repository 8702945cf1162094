//! An operator reads and verifies the audit log of a running CA.

use tonic::transport::Channel;

use super::admin::Admin;
use super::refused;
use crate::audit::{Filter, Hash, Record, Verified};
use crate::proto::audit_client::AuditClient;
use crate::{Error, proto};

impl Admin {
    /// Hands out every record that fits, oldest first.
    pub async fn audit(
        &mut self,
        filter: &Filter,
        mut take: impl FnMut(Record) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let request = proto::ReadAuditRequest {
            since_ms: filter.since_ms.unwrap_or(0),
            until_ms: filter.until_ms.unwrap_or(0),
            act: filter.act.clone().unwrap_or_default(),
            by: filter.by.clone().unwrap_or_default(),
            subject: filter.subject.clone().unwrap_or_default(),
            refused: filter.refused,
        };
        // A long log takes longer than other calls may.
        let reply = self.audit_client().read_audit(request).await;
        let mut records = reply.map_err(refused)?.into_inner();
        while let Some(record) = records.message().await.map_err(refused)? {
            let record = serde_json::from_str(&record.json)
                .map_err(|error| Error::Protocol(format!("audit record: {error}")))?;
            take(record)?;
        }
        Ok(())
    }

    /// Checks every link of the log, and the signed heads that agents hold.
    /// The inner error says what is broken, and where.
    pub async fn verify_audit(
        &mut self,
        heads: Vec<Vec<u8>>,
    ) -> Result<Result<Verified, String>, Error> {
        let request = proto::VerifyAuditRequest { heads };
        let reply = self.audit_client().verify_audit(request).await;
        let reply = reply.map_err(refused)?.into_inner();
        if !reply.problem.is_empty() {
            return Ok(Err(reply.problem));
        }
        let hash = reply.hash.try_into();
        Ok(Ok(Verified {
            entries: reply.entries,
            head: Hash(hash.map_err(|_| Error::Protocol("no hash of the log".to_owned()))?),
            torn_bytes: reply.torn_bytes,
        }))
    }

    fn audit_client(&self) -> AuditClient<Channel> {
        AuditClient::new(self.channel.clone())
    }
}
