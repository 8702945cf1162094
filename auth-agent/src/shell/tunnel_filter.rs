//! Our nftables table: what it is to do, and whether it still does; our routes, and whether our gates come first, are
//! looked at with it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use handfast_encrypt::nat;

use super::agent::Agent;
use super::{RunError, tunnel_start};

/// How often is looked whether somebody has changed the table or our routes.
const LOOK: Duration = Duration::from_secs(15);

/// The table as it was written.
pub(super) struct Filter {
    table: nat::Table,
    /// As the kernel showed it then.
    shown: String,
    looked: Instant,
}

impl Agent {
    /// Writes the table when there is something new to say.
    pub(super) async fn set_filter(&mut self) -> Result<(), RunError> {
        let table = nat::Table {
            devices: tunnel_start::device_names(&self.config)?,
            ports: tunnel_start::ports(&self.config)?,
            underlay: self.signed_underlay(),
            marks: nat::Marks::default(),
        };
        if self
            .filter
            .as_ref()
            .is_some_and(|filter| filter.table == table)
        {
            return Ok(());
        }
        self.write_filter(table).await
    }

    async fn write_filter(&mut self, table: nat::Table) -> Result<(), RunError> {
        // Until it stands again, it is not known to.
        self.filter = None;
        nat::install(&table).await?;
        self.filter = Some(Filter {
            shown: nat::read().await?,
            table,
            looked: Instant::now(),
        });
        Ok(())
    }

    /// Writes the table again if somebody has changed it or taken it away.
    pub(super) async fn check_filter(&mut self) {
        let mended = match self.filter.take() {
            Some(filter) if filter.looked.elapsed() < LOOK => {
                self.filter = Some(filter);
                return;
            }
            Some(filter) => self.mend_filter(filter).await,
            None => self.set_filter().await,
        };
        if let Err(error) = mended {
            self.alarm(format!("packet filter: {error}"));
        }
        if let Err(error) = self.mend_routes().await {
            self.alarm(format!("routes: {error}"));
        }
        match self.gates.put_first() {
            Ok(found) => found.into_iter().for_each(|what| self.alarm(what)),
            Err(error) => self.alarm(format!("gates: {error}")),
        }
    }

    async fn mend_filter(&mut self, filter: Filter) -> Result<(), RunError> {
        if nat::read().await? == filter.shown {
            let looked = Instant::now();
            self.filter = Some(Filter { looked, ..filter });
            return Ok(());
        }
        self.alarm(
            "somebody has changed the nftables table inet handfast; it is written again".into(),
        );
        self.write_filter(filter.table).await
    }

    /// Where other nodes' tunnels are, as the CA says; `None` where a node has not said, so that nobody is kept out.
    fn signed_underlay(&self) -> Option<Vec<IpAddr>> {
        let own = self.node.spiffe_id.to_string();
        let others = self.knowledge.nodes.iter().filter(|n| n.spiffe_id != own);
        let mut addresses = Vec::new();
        for node in others {
            if node.underlay.is_empty() {
                return None;
            }
            let ips = node.underlay.iter().map(|address| address.ip());
            addresses.extend(ips.map(|address| address.to_canonical()));
        }
        addresses.sort_unstable();
        addresses.dedup();
        Some(addresses)
    }
}
