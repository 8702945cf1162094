//! What proofs cost against handshakes.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use handfast_agent::proof::{self, ProofContext, ProofKey};
use handfast_ca::authority::{self, Authority, Setup};
use handfast_ca::certificate::{CsrKey, NodeBinding, PrivateKey, ProofBinding};
use handfast_ca::deny::DenyList;
use handfast_ca::verify::Verifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::SpiffeId;

use crate::handshake::Handshakes;
use crate::report::{Figure, Goal, ROUNDS, cpu, figure};

/// Identities on each of the two nodes.
const IDENTITIES: usize = 100;
/// Handshakes in one round; the cost of one is what counts.
const HANDSHAKES: usize = 200;

/// A certificate with its key.
struct Svid {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

/// `node.pair_cpu_ratio`.
pub fn measure() -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("ca");
    let ranges = vec!["10.99.0.0/16".parse()?];
    let setup = Setup::new(dir.clone(), "example.org".try_into()?, ranges);
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(authority::init(&setup))?;
    let ca = runtime.block_on(Authority::open(&dir))?;
    let verifier = Verifier::new(ca.bundle(1)?, DenyList::empty());
    let node = node(&ca)?;
    let workload = workload(&ca)?;
    let handshakes = Handshakes::new(verifier.clone(), &node.chain, &node.key)?;

    let pairs = (IDENTITIES * IDENTITIES) as f64;
    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        let (one_by_one, _) = cpu(|| (0..HANDSHAKES).try_for_each(|_| handshakes.run().map(drop)))?;
        let (together, ()) = cpu(|| proofs(&handshakes, &verifier, &workload))?;
        let each = one_by_one.as_secs_f64() / HANDSHAKES as f64;
        // The first round warms up.
        if round > 0 {
            rounds.push(each * pairs / together.as_secs_f64());
        }
    }
    let how = format!(
        "processor time of {pairs} pairs by one full mutual handshake each ({HANDSHAKES} measured), over that of \
         one handshake and {} proofs made, verified and judged; in memory, one thread",
        2 * IDENTITIES
    );
    Ok(vec![figure(
        "node.pair_cpu_ratio",
        "ratio",
        Goal::AtLeast(50.0),
        rounds,
        &how,
    )?])
}

/// One session with the proofs of all identities, both ways.
fn proofs(handshakes: &Handshakes, verifier: &Verifier, workload: &Svid) -> Result<()> {
    let (client, server) = handshakes.run()?;
    let client = ProofContext::from_client(&client)?;
    let server = ProofContext::from_server(&server)?;
    let now = UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH)?);
    let key = ProofKey::from_pkcs8(&workload.key)?;
    for number in 0..IDENTITIES {
        let mut request = [0; 32];
        request[..8].copy_from_slice(&number.to_be_bytes());
        let asked = proof::make(&client, &workload.chain, &key, Some(&request))?;
        let chain = proof::verify(&server, &asked, Some(&request))?;
        verifier.proof(chain.certificates(), now)?;
        let spontaneous = proof::make(&server, &workload.chain, &key, None)?;
        let chain = proof::verify(&client, &spontaneous, None)?;
        verifier.proof(chain.certificates(), now)?;
    }
    Ok(())
}

fn node(ca: &Authority) -> Result<Svid> {
    let (key, request) = key()?;
    let binding = NodeBinding {
        name: "n1".parse()?,
        prefixes: vec!["10.99.1.0/24".parse()?],
        assignment: 1,
    };
    let chain = ca.node_svid(&request, &binding)?.chain;
    Ok(Svid { chain, key })
}

fn workload(ca: &Authority) -> Result<Svid> {
    let (key, request) = key()?;
    let binding = ProofBinding {
        node: "n1".parse()?,
        labels: [("app".to_owned(), "web".to_owned())].into_iter().collect(),
    };
    let id = SpiffeId::new("spiffe://example.org/web").context("an ID")?;
    let chain = ca.proof_svid(&request, id, &binding, None)?.chain;
    Ok(Svid { chain, key })
}

fn key() -> Result<(Vec<u8>, CsrKey)> {
    let key = PrivateKey::generate()?;
    let request = CsrKey::read(&key.csr()?)?;
    Ok((key.to_pkcs8().to_vec(), request))
}
