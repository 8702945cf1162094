//! Where a foreign bundle is fetched, and whom to expect there (F-1, F-2).

use std::fmt;

use spiffe::SpiffeId;
use url::Url;

use crate::Error;
use crate::names::operator_id;

const MAX_URL: usize = 2048;

/// An endpoint whose parameters make sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    url: Url,
    profile: Profile,
}

/// How the endpoint is authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// By a certificate of the Web PKI for the URL's host.
    Web,
    /// By an X509-SVID with exactly this ID.
    Spiffe(SpiffeId),
}

impl Endpoint {
    /// Checks an endpoint's parameters: `profile` is `https_web` or
    /// `https_spiffe`; the latter needs the endpoint's SPIFFE ID.
    pub fn new(url: &str, profile: &str, endpoint_id: &str) -> Result<Self, Error> {
        let url = read_url(url)?;
        let profile = match (profile, endpoint_id) {
            ("https_web", "") => Profile::Web,
            ("https_web", _) => {
                return Err(Error::invalid(
                    "endpoint SPIFFE ID",
                    "only https_spiffe has one",
                ));
            }
            ("https_spiffe", "") => {
                return Err(Error::invalid(
                    "endpoint SPIFFE ID",
                    "https_spiffe needs the ID of the endpoint, such as spiffe://partner.example/bundle-endpoint",
                ));
            }
            ("https_spiffe", id) => Profile::Spiffe(operator_id(id)?),
            (other, _) => {
                let shown: String = other.chars().take(32).collect();
                return Err(Error::invalid(
                    format!("profile {shown:?}"),
                    "https_web or https_spiffe",
                ));
            }
        };
        Ok(Self { url, profile })
    }

    /// Where it is.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// How it is authenticated.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Where a redirect leads (F-5): to a URL of the same profile, for this
    /// once.
    pub(crate) fn redirected(&self, location: &str) -> Result<Self, Error> {
        let target = self
            .url
            .join(location)
            .map_err(|error| Error::invalid("redirect", format!("it leads to no URL: {error}")))?;
        Ok(Self {
            url: read_url(target.as_str())?,
            profile: self.profile.clone(),
        })
    }
}

impl Profile {
    /// Its name in the specification.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Web => "https_web",
            Self::Spiffe(_) => "https_spiffe",
        }
    }

    /// Whom to expect, with `https_spiffe`.
    pub fn endpoint_id(&self) -> Option<&SpiffeId> {
        match self {
            Self::Web => None,
            Self::Spiffe(id) => Some(id),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn read_url(text: &str) -> Result<Url, Error> {
    let shown: String = text.chars().take(128).collect();
    let bad = |problem: &str| Error::invalid(format!("bundle endpoint URL {shown:?}"), problem);
    if text.len() > MAX_URL {
        return Err(bad("it is too long"));
    }
    let url = Url::parse(text).map_err(|error| bad(&error.to_string()))?;
    if url.scheme() != "https" {
        return Err(bad("its scheme must be https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("user and password have no place in it"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad("it names no host"));
    }
    Ok(url)
}
