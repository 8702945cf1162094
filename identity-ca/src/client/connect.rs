//! One TLS connection to the CA, and whom to believe on it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use spiffe::TrustDomain;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::{MAX_CLOCK_SKEW_MS, NodeIdentity, refused};
use crate::bundle::{Fingerprint, TrustBundle};
use crate::deny::DenyList;
use crate::proto::agents_client::AgentsClient;
use crate::tls::{ALPN, Signatures, certified, provider, refusal};
use crate::verify::{Rejection, Verifier};
use crate::{Error, now_ms, proto};

const CONNECT: Duration = Duration::from_secs(10);
const CALL: Duration = Duration::from_secs(30);
/// An update carries the whole registry of a mesh.
const MAX_MESSAGE: usize = 64 << 20;

impl Error {
    /// Did the other side answer, knowing who we are, that it does not want
    /// us? Asking again changes nothing then.
    pub fn is_denial(&self) -> bool {
        use tonic::Code;
        matches!(
            self,
            Self::Refused {
                code: Code::PermissionDenied | Code::Unauthenticated,
                ..
            }
        )
    }

    /// Do the clocks of the two sides differ too much? Of calls that join, connect or ask for certificates: none of
    /// them fails by another condition of the node's.
    pub fn is_clock(&self) -> bool {
        matches!(
            self,
            Self::Clock { .. }
                | Self::Refused {
                    code: tonic::Code::FailedPrecondition,
                    ..
                }
        )
    }
}

/// Whom we take for the CA.
#[derive(Debug, Clone)]
pub(super) enum Trust {
    /// Whoever the bundle vouches for.
    Bundle(Box<Verifier>),
    /// Whoever the root with this fingerprint vouches for, which it shows.
    Root(TrustDomain, Fingerprint),
}

impl Trust {
    fn judge(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Rejection> {
        match self {
            Self::Bundle(verifier) => verifier.server(chain, now),
            Self::Root(trust_domain, fingerprint) => {
                let unknown = || {
                    Rejection::Path(format!(
                        "it does not end in the root {fingerprint} by which it is to be known: this is another CA, or its root was replaced since (of a join token `handfast token list` there says so, and `handfast token create` makes a new one; `handfast ca status` shows the fingerprint)"
                    ))
                };
                let root = chain
                    .iter()
                    .find(|der| Fingerprint::of(der) == *fingerprint)
                    .ok_or_else(unknown)?;
                let bundle = TrustBundle::new(trust_domain.clone(), 0, [root.to_vec()])
                    .map_err(|error| Rejection::Path(error.to_string()))?;
                Verifier::new(bundle, DenyList::empty()).server(chain, now)
            }
        }
    }
}

/// Connects, and makes sure that both clocks agree before anything else is said.
pub(super) async fn connect(
    address: &str,
    trust: &Trust,
    identity: Option<&NodeIdentity>,
) -> Result<AgentsClient<Channel>, Error> {
    let channel = connect_channel(address, trust, identity, Caller::Node).await?;
    Ok(agents(channel))
}

/// As whom we call: what to do about a certificate that is not taken differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    Node,
    Operator,
}

/// The same for other services than that of agents.
pub(super) async fn connect_channel(
    address: &str,
    trust: &Trust,
    identity: Option<&NodeIdentity>,
    caller: Caller,
) -> Result<Channel, Error> {
    let failure = match open(address, trust, identity, Clock::Ours).await {
        Ok((channel, alert)) => match compare_clocks(channel.clone()).await {
            Ok(()) => return Ok(channel),
            // In TLS 1.3 a client is ready before the server has judged it.
            Err(error) => match alert.received() {
                Some(alert) => return Err(turned_away(address, trust, alert, caller).await),
                None => error,
            },
        },
        Err(error) => error,
    };
    if matches!(failure, Error::Rejected(Rejection::Time { .. })) {
        probe_clock(address, trust).await?;
    }
    Err(failure)
}

/// Why the CA did not take our certificate.
async fn turned_away(
    address: &str,
    trust: &Trust,
    alert: AlertDescription,
    caller: Caller,
) -> Error {
    let because = match alert {
        AlertDescription::CertificateRevoked if caller == Caller::Operator => {
            "the CA has revoked this identity (see `handfast revoke --list` there)"
        }
        AlertDescription::CertificateExpired if caller == Caller::Operator => {
            if let Err(clocks) = probe_clock(address, trust).await {
                return clocks;
            }
            "the CA says that this SVID is out of its time; fetch the present one (`handfast svid x509`)"
        }
        AlertDescription::UnknownCA if caller == Caller::Operator => {
            "the CA does not know who signed this SVID; is this the CA of its trust domain?"
        }
        _ if caller == Caller::Operator => {
            "this SVID's SPIFFE ID has no role at this CA, or is not a workload's; an admin gives one there (`handfast operator add SPIFFE-ID --role auditor`, or registrar, or admin)"
        }
        AlertDescription::CertificateRevoked => {
            "the CA has revoked this node (see `handfast revoke --list` there)"
        }
        AlertDescription::UnknownCA => {
            "the CA does not know who signed this node's certificate; is this the CA that the node joined?"
        }
        AlertDescription::CertificateExpired | AlertDescription::BadCertificate => {
            if let Err(clocks) = probe_clock(address, trust).await {
                return clocks;
            }
            "the CA says that this node's certificate is out of its time; join again with a new token (`handfast token create` on the CA)"
        }
        _ => {
            "the CA did not accept this node's certificate; join again with a new token (`handfast token create` on the CA)"
        }
    };
    Error::Refused {
        code: tonic::Code::Unauthenticated,
        message: format!("{because} (TLS: {alert:?})"),
    }
}

/// A certificate out of its time, on either side, mostly means a wrong clock.
/// Asks for the CA's, whatever ours says, and says nothing else there.
async fn probe_clock(address: &str, trust: &Trust) -> Result<(), Error> {
    match open(address, trust, None, Clock::Certificate).await {
        Ok((channel, _)) => match compare_clocks(channel).await {
            Err(error @ Error::Clock { .. }) => Err(error),
            _ => Ok(()),
        },
        Err(_) => Ok(()),
    }
}

pub(super) fn agents(channel: Channel) -> AgentsClient<Channel> {
    AgentsClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

async fn compare_clocks(channel: Channel) -> Result<(), Error> {
    let ours = now_ms();
    let reply = agents(channel)
        .clock(proto::ClockRequest {})
        .await
        .map_err(refused)?;
    check_clocks(ours, reply.into_inner().now_ms)
}

/// Refuses clocks that are too far apart, and names both.
pub(crate) fn check_clocks(ours_ms: u64, theirs_ms: u64) -> Result<(), Error> {
    let apart = ours_ms.abs_diff(theirs_ms);
    if apart <= MAX_CLOCK_SKEW_MS {
        return Ok(());
    }
    let words = |ms: u64| {
        let seconds = ms / 1000;
        format!(
            "{} h {} min {} s",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        )
    };
    Err(Error::Clock {
        ours: moment(ours_ms),
        theirs: moment(theirs_ms),
        difference: words(apart),
        allowed: format!("{} min", MAX_CLOCK_SKEW_MS / 60_000),
    })
}

/// RFC 3339, UTC, whole seconds.
pub(crate) fn moment(ms: u64) -> String {
    i64::try_from(ms / 1000)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| {
            time.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_else(|| format!("{ms} ms since 1970"))
}

/// By which clock the CA's certificate is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    Ours,
    /// At a time at which it is valid: only for asking what time it is.
    Certificate,
}

async fn open(
    address: &str,
    trust: &Trust,
    identity: Option<&NodeIdentity>,
    clock: Clock,
) -> Result<(Channel, Alert), Error> {
    let unreachable = |problem: String| Error::Unreachable {
        address: format!("the CA at {address}"),
        problem,
    };
    let provider = provider();
    let verifier = Arc::new(ServerVerifier {
        trust: trust.clone(),
        clock,
        signatures: Signatures::of(&provider),
        rejection: Mutex::new(None),
    });
    let config = client_config(provider, Arc::clone(&verifier), identity)?;
    let tcp = timeout(CONNECT, TcpStream::connect(address))
        .await
        .map_err(|_| unreachable("no answer within 10 s; is a firewall in between?".to_owned()))?
        .map_err(|error| unreachable(error.to_string()))?;
    tcp.set_nodelay(true)
        .map_err(|error| unreachable(error.to_string()))?;
    // The name is not used: the certificate is judged by its SPIFFE ID.
    let name =
        ServerName::try_from("handfast-ca").map_err(|error| Error::Protocol(error.to_string()))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    let stream = timeout(CONNECT, handshake).await.map_err(|_| {
        unreachable("no TLS handshake within 10 s; is this the CA's port?".to_owned())
    })?;
    let rejection = verifier
        .rejection
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    match (stream, rejection) {
        (Ok(stream), _) => channel(stream).await,
        (Err(_), Some(rejection)) => Err(Error::Rejected(rejection)),
        (Err(error), None) => Err(unreachable(format!("TLS: {error}"))),
    }
}

/// A channel on this one connection: who loses it connects again by name.
async fn channel(tls: TlsStream<TcpStream>) -> Result<(Channel, Alert), Error> {
    let alert = Alert::default();
    let stream = Listening {
        tls,
        alert: alert.clone(),
    };
    let once = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            stream
                .map(TokioIo::new)
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
        }
    });
    let channel = Endpoint::from_static("http://handfast-ca")
        .http2_keep_alive_interval(Duration::from_secs(15))
        .keep_alive_timeout(Duration::from_secs(15))
        .keep_alive_while_idle(true)
        .connect_timeout(CONNECT)
        .connect_with_connector(connector)
        .await
        .map_err(|error| Error::Protocol(error.to_string()))?;
    Ok((channel, alert))
}

/// The alert that ended a connection, which HTTP/2 would hide.
#[derive(Debug, Clone, Default)]
struct Alert(Arc<Mutex<Option<AlertDescription>>>);

impl Alert {
    fn received(&self) -> Option<AlertDescription> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, error: &io::Error) {
        let error = error
            .get_ref()
            .and_then(|error| error.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = error {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(*alert);
        }
    }
}

/// A connection that remembers the alert that ends it.
struct Listening {
    tls: TlsStream<TcpStream>,
    alert: Alert,
}

impl AsyncRead for Listening {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.tls).poll_read(context, buffer);
        if let Poll::Ready(Err(error)) = &read {
            self.alert.note(error);
        }
        read
    }
}

impl AsyncWrite for Listening {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}

/// A request that does not wait for ever.
pub(super) fn bounded<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL);
    request
}

fn client_config(
    provider: Arc<rustls::crypto::CryptoProvider>,
    verifier: Arc<ServerVerifier>,
    identity: Option<&NodeIdentity>,
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::Crypto(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => {
            let key = certified(identity.chain.clone(), &identity.key)?;
            builder.with_client_cert_resolver(Arc::new(Always(key)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct ServerVerifier {
    trust: Trust,
    clock: Clock,
    signatures: Signatures,
    /// What rustls cannot carry.
    rejection: Mutex<Option<Rejection>>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(end_entity)
            .chain(intermediates)
            .cloned()
            .collect();
        let judged = match (self.trust.judge(&chain, crate::now()), self.clock) {
            (
                Err(Rejection::Time {
                    not_before,
                    not_after,
                    ..
                }),
                Clock::Certificate,
            ) => {
                let inside = Duration::from_secs(not_before.midpoint(not_after));
                self.trust.judge(&chain, UnixTime::since_unix_epoch(inside))
            }
            (judged, _) => judged,
        };
        judged
            .map(|()| ServerCertVerified::assertion())
            .map_err(|rejection| {
                let error = refusal(&rejection);
                *self
                    .rejection
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(rejection);
                error
            })
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Signatures::refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Signatures::schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_a_day_apart_are_both_named() {
        let ours = 1_700_000_000_000;
        let error = check_clocks(ours, ours + 86_400_000)
            .unwrap_err()
            .to_string();
        assert!(error.contains("2023-11-14T22:13:20Z"), "{error}");
        assert!(error.contains("2023-11-15T22:13:20Z"), "{error}");
        assert!(error.contains("24 h 0 min 0 s"), "{error}");
        assert!(check_clocks(ours, ours - 60_000).is_ok());
    }
}
