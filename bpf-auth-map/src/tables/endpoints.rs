//! Workloads of this node: their interfaces and their addresses.

use std::{collections::BTreeSet, net::IpAddr};

use handfast_layout as layout;

use super::Tables;
use crate::{
    Endpoint, EndpointId, Error, IdentityNumber, Local,
    types::{to_addr, to_ip},
};

impl Tables {
    /// Writes an endpoint.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_endpoint(&self, id: EndpointId, endpoint: &Endpoint) -> Result<(), Error> {
        let value = layout::Endpoint {
            ifindex: endpoint.ifindex,
            identity: endpoint.identity.0,
            mac: endpoint.mac,
            host_mac: endpoint.host_mac,
            flags: 0,
        };
        self.endpoints.set(&id.0, &value)
    }

    /// Forgets an endpoint and what it used up. Its addresses are removed apart.
    ///
    /// # Errors
    /// A map could not be written.
    pub fn remove_endpoint(&self, id: EndpointId) -> Result<(), Error> {
        self.endpoints.remove(&id.0)?;
        self.usage.remove(&id.0)
    }

    /// All endpoints.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn endpoints(&self) -> Result<Vec<(EndpointId, Endpoint)>, Error> {
        self.endpoints.all(|id, value| {
            let endpoint = Endpoint {
                ifindex: value.ifindex,
                identity: IdentityNumber(value.identity),
                mac: value.mac,
                host_mac: value.host_mac,
            };
            (EndpointId(id), endpoint)
        })
    }

    /// Tells the gates whose interface this is. To be done before they are attached to it: on an interface of nobody's
    /// they let nothing pass.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_interface(&self, ifindex: u32, endpoint: EndpointId) -> Result<(), Error> {
        self.interfaces.set(&ifindex, &endpoint.0)
    }

    /// Forgets the interfaces that are not among these.
    ///
    /// # Errors
    /// The map could not be read or written.
    pub fn keep_interfaces(&self, known: &BTreeSet<u32>) -> Result<(), Error> {
        self.interfaces.retain(|ifindex, _| known.contains(ifindex))
    }

    /// Forgets an interface.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_interface(&self, ifindex: u32) -> Result<(), Error> {
        self.interfaces.remove(&ifindex)
    }

    /// Gives an address to an endpoint.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_local(&self, address: IpAddr, local: Local) -> Result<(), Error> {
        let value = layout::Local {
            endpoint: local.endpoint.0,
            identity: local.identity.0,
        };
        self.changing(|| self.locals.set(&to_addr(address), &value))
    }

    /// Takes an address away.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_local(&self, address: IpAddr) -> Result<(), Error> {
        self.changing(|| self.locals.remove(&to_addr(address)))
    }

    /// All local addresses.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn locals(&self) -> Result<Vec<(IpAddr, Local)>, Error> {
        self.locals.all(|addr, value| {
            let local = Local {
                endpoint: EndpointId(value.endpoint),
                identity: IdentityNumber(value.identity),
            };
            (to_ip(addr), local)
        })
    }
}
