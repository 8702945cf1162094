//! Revocation lists as the servers that share the store have made them, the newest of each issuing CA.

use super::Registry;
use super::store::{int, uint};
use crate::Error;
use crate::authority::Crl;

impl Registry {
    /// Keeps lists for the agents of all servers; an older one replaces none.
    pub(crate) async fn put_crls(&self, crls: &[Crl]) -> Result<(), Error> {
        let mut change = self.store.begin_beside().await?;
        for crl in crls {
            sqlx::query(
                "INSERT INTO crls VALUES ($1, $2, $3, $4) ON CONFLICT (issuer) DO UPDATE SET
                    number = $2, ends_ms = $3, der = $4 WHERE crls.number <= $2",
            )
            .bind(&crl.issuer)
            .bind(int(crl.number))
            .bind(int(crl.ends_ms))
            .bind(crl.der.as_slice())
            .execute(&mut *change)
            .await?;
        }
        sqlx::query("DELETE FROM crls WHERE ends_ms < $1")
            .bind(int(crate::now_ms()))
            .execute(&mut *change)
            .await?;
        change.commit().await
    }

    /// Those of all issuing CAs.
    pub(crate) async fn crls(&self) -> Result<Vec<Crl>, Error> {
        let rows: Vec<(String, i64, i64, Vec<u8>)> =
            sqlx::query_as("SELECT issuer, number, ends_ms, der FROM crls")
                .fetch_all(self.store.reader())
                .await?;
        let rows = rows.into_iter();
        Ok(rows
            .map(|(issuer, number, ends_ms, der)| Crl {
                issuer,
                number: uint(number),
                ends_ms: uint(ends_ms),
                der,
            })
            .collect())
    }

    /// Do other servers share the store?
    pub(crate) fn is_shared(&self) -> bool {
        self.store.url().is_some()
    }
}
