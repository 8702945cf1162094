//! Strangers who want to be let in wait for a place: a few at once are judged and admitted, and each source has only so
//! many who wait, so that those who are known are served whatever strangers do.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::quota::{Place, source};
use super::state::State;
use crate::Error;

/// Who has waited so long comes again; nothing of his is spent.
const PATIENCE: Duration = Duration::from_secs(10);

/// One more of a source who wants to be let in, if it may have one more.
pub(super) fn knock(state: &State, from: SocketAddr) -> Result<Place<IpAddr>, Error> {
    let place = state.knocking.take(source(from.ip()));
    place.ok_or(Error::Busy(
        "as many others of this address as may are being let in",
    ))
}

/// A place, in the order of asking.
pub(super) async fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    match timeout(PATIENCE, Arc::clone(places).acquire_owned()).await {
        Ok(Ok(place)) => Ok(place),
        Ok(Err(_)) | Err(_) => Err(Error::Busy(
            "the CA is busy with others who want to be let in",
        )),
    }
}
