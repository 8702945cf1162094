//! How much of what the processor could sign comes out of a CA: server, store, gRPC and TLS included.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use handfast_ca::authority::{self, Setup};
use handfast_ca::certificate::{CsrKey, PrivateKey};
use handfast_ca::client::admin::{Admin, NewEntry, TokenRequest};
use handfast_ca::client::{AgentClient, SvidKind, SvidRequest, join};
use handfast_ca::deny::DenyList;
use handfast_ca::server::{Options, Server};
use handfast_ca::verify::Verifier;
use tokio::sync::oneshot;

use crate::report::{Figure, Goal, ROUNDS, figure};

/// SVIDs of one round.
const BATCH: usize = 2000;
/// Entries of the node beside the one that is asked for.
const OTHERS: usize = 1000;
/// About the size of a certificate before it is signed, in bytes.
const BODY: usize = 700;

/// `ca.issue_ratio`.
pub fn measure() -> Result<Vec<Figure>> {
    tokio::runtime::Runtime::new()?.block_on(issue())
}

async fn issue() -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("ca");
    let ranges = vec!["10.99.0.0/16".parse()?];
    let setup = Setup::new(dir.clone(), "example.org".try_into()?, ranges);
    authority::init(&setup).await?;
    let socket = folder.path().join("ca.sock");
    let server = Server::bind(&Options::new(dir, "127.0.0.1:0".parse()?, socket.clone())).await?;
    let address = server.local_addr().to_string();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.run(async { drop(stopped.await) }));

    let (agent, entry_id) = agent(&socket, &address).await?;
    let csr = PrivateKey::generate()?.csr()?;
    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        let limit = limit(&csr)?;
        let requests = (0..BATCH)
            .map(|_| SvidRequest {
                kind: SvidKind::Proof {
                    entry_id: entry_id.clone(),
                },
                csr: csr.clone(),
            })
            .collect();
        let start = Instant::now();
        let answers = agent.issue(requests).await?;
        let taken = start.elapsed();
        ensure!(
            answers.len() == BATCH,
            "{} answers to {BATCH} requests",
            answers.len()
        );
        for answer in answers {
            answer.context("an SVID was refused")?;
        }
        if round > 0 {
            rounds.push(limit.as_secs_f64() / taken.as_secs_f64());
        }
    }
    drop(stop);
    serving.await??;
    let how = format!(
        "time of {BATCH} times parse, verify and sign on one thread, over that of {BATCH} proof SVIDs from a \
         running CA over loopback, as one agent gets them"
    );
    Ok(vec![figure(
        "ca.issue_ratio",
        "ratio",
        Goal::AtLeast(0.5),
        rounds,
        &how,
    )?])
}

/// What the cryptography alone takes.
fn limit(csr: &[u8]) -> Result<Duration> {
    let key = PrivateKey::generate()?;
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.to_pkcs8())?;
    let random = SystemRandom::new();
    let start = Instant::now();
    for _ in 0..BATCH {
        std::hint::black_box(CsrKey::read(csr)?);
        std::hint::black_box(key.sign(&random, &[7; BODY])?);
    }
    Ok(start.elapsed())
}

/// Joins as a node and has one entry made.
fn entry(name: &str) -> NewEntry {
    NewEntry {
        spiffe_id: format!("spiffe://example.org/{name}"),
        selectors: vec![format!("netns:{name}")],
        labels: [("app".to_owned(), name.replace('/', "-"))].into(),
        ..NewEntry::default()
    }
}

async fn agent(socket: &Path, address: &str) -> Result<(AgentClient, String)> {
    let mut admin = Admin::connect(socket).await?;
    let token = admin
        .create_token(&TokenRequest {
            node: "n1".parse()?,
            prefixes: vec!["10.99.1.0/24".parse()?],
            underlay: vec!["192.0.2.1".to_owned()],
            ca_address: address.to_owned(),
            ttl: Duration::from_secs(600),
            joining: false,
        })
        .await?;
    let asked = admin.create_entry(&entry("web")).await?;
    // A node with one entry has no use for so many SVIDs, and does not get them.
    let others: Vec<NewEntry> = (0..OTHERS).map(|n| entry(&format!("other/{n}"))).collect();
    admin.import_entries(&others, false, false).await?;
    let joined = join(&token).await?;
    let verifier = Verifier::new(joined.bundle, DenyList::empty());
    let agent = AgentClient::connect(address, &verifier, &joined.identity).await?;
    Ok((agent, asked.id))
}
