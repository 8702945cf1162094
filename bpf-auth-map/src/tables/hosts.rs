//! Addresses of workloads of the node itself.

use std::net::IpAddr;

use handfast_layout as layout;

use super::Tables;
use crate::{
    EndpointId, Error, Host,
    types::{to_addr, to_ip},
};

impl Tables {
    /// Gives an address to the sockets of a control group. Written before the address is in `locals`.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_host(&self, address: IpAddr, host: Host) -> Result<(), Error> {
        let value = layout::Host {
            cgroup: host.cgroup.id,
            level: host.cgroup.level,
            endpoint: host.endpoint.0,
        };
        self.hosts.set(&to_addr(address), &value)
    }

    /// Forgets the addresses of an endpoint: nobody may use them.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_host(&self, endpoint: EndpointId) -> Result<(), Error> {
        self.hosts.retain(|_, host| host.endpoint != endpoint.0)
    }

    /// All of them.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn hosts(&self) -> Result<Vec<(IpAddr, Host)>, Error> {
        self.hosts.all(|addr, value| {
            let cgroup = crate::CgroupId {
                id: value.cgroup,
                level: value.level,
            };
            let endpoint = EndpointId(value.endpoint);
            (to_ip(addr), Host { cgroup, endpoint })
        })
    }
}
