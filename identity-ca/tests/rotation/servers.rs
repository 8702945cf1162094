//! Several servers under one root, in one PostgreSQL: what one of them rotates reaches all.

use std::net::SocketAddr;
use std::path::Path;

use handfast_ca::authority::{self, Setup};
use handfast_ca::client::admin::Admin;
use handfast_ca::rotation::{Stage, What};
use handfast_ca::server::{Options, Server};
use tokio::task::JoinHandle;

use super::agent::{Agent, Traffic, issuer};
use super::common::postgres::Postgres;
use super::common::setup;
use super::whole::{order, until};

struct One {
    admin: Admin,
    address: SocketAddr,
    running: JoinHandle<()>,
}

impl Drop for One {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn wanted(folder: &Path, name: &str, url: &str) -> Setup {
    let mut wanted = setup(folder.join(name));
    wanted.server = name.to_owned();
    wanted.store = Some(url.to_owned());
    wanted
}

async fn serve(folder: &Path, name: &str) -> One {
    let socket = folder.join(format!("{name}.sock"));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::bind(&Options::new(folder.join(name), listen, socket.clone()))
        .await
        .unwrap();
    let address = server.local_addr();
    let running = tokio::spawn(async move { server.run(std::future::pending()).await.unwrap() });
    One {
        admin: Admin::connect(&socket).await.unwrap(),
        address,
        running,
    }
}

async fn join(server: &mut One, name: &str, prefix: &str) -> Agent {
    let token = handfast_ca::client::admin::TokenRequest {
        node: name.parse().unwrap(),
        prefixes: vec![prefix.parse().unwrap()],
        underlay: vec!["192.0.2.10".to_owned()],
        ca_address: server.address.to_string(),
        ttl: std::time::Duration::from_secs(600),
        joining: false,
    };
    let token = server.admin.create_token(&token).await.unwrap();
    let joined = handfast_ca::client::join(&token).await.unwrap();
    Agent::start(name, server.address.to_string(), joined)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_gets_its_issuing_ca_and_a_rotation_reaches_both() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let url = postgres.url("handfast");
    authority::init(&wanted(folder.path(), "east", &url))
        .await
        .unwrap();
    let mut east = serve(folder.path(), "east").await;

    authority::init(&wanted(folder.path(), "west", &url))
        .await
        .unwrap();
    let mut third = wanted(folder.path(), "west", &url);
    third.dir = folder.path().join("third");
    assert!(
        authority::init(&third)
            .await
            .unwrap_err()
            .to_string()
            .contains("another name")
    );
    // Nobody but an operator vouches for a server that has never served.
    let request = authority::request(&folder.path().join("west"))
        .await
        .unwrap();
    let certificate = east.admin.sign_issuing("west", request).await.unwrap();
    authority::install(&folder.path().join("west"), &certificate)
        .await
        .unwrap();
    let mut west = serve(folder.path(), "west").await;

    for entry in 0..2 {
        let entry = handfast_ca::client::admin::NewEntry {
            spiffe_id: format!("spiffe://example.org/w{entry}"),
            selectors: vec!["netns:web".to_owned()],
            ..Default::default()
        };
        east.admin.create_entry(&entry).await.unwrap();
    }
    let agents = [
        join(&mut east, "n0", "10.1.0.0/24").await,
        join(&mut west, "n1", "10.1.1.0/24").await,
    ];
    for agent in &agents {
        agent.has(2).await;
    }
    // Each signs with its own.
    assert_ne!(
        issuer(&agents[0].chains()[1]),
        issuer(&agents[1].chains()[1])
    );
    let traffic = Traffic::start(&agents);
    let before = east.admin.bundle().await.unwrap();

    // Begun where the root's key is not: the other server has what is needed, or it is refused.
    let refused = west
        .admin
        .rotate(order(What::Root, Stage::Revoked))
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("if another server has it, rotate there"),
        "{refused}"
    );
    let started = east
        .admin
        .rotate(order(What::Root, Stage::Revoked))
        .await
        .unwrap();
    until(&mut east.admin, started.id, "revoked").await;
    until(&mut west.admin, started.id, "revoked").await;
    traffic.end().await;
    let after = west.admin.bundle().await.unwrap();
    assert_eq!(after.roots().count(), 1);
    assert!(!after.fingerprints().eq(before.fingerprints()));
    assert_ne!(
        issuer(&agents[0].chains()[1]),
        issuer(&agents[1].chains()[1])
    );
    for name in ["east", "west"] {
        let keys = std::fs::read_dir(folder.path().join(name).join("keys")).unwrap();
        let issuing = keys.filter(|file| {
            let name = file.as_ref().unwrap().file_name();
            name.to_str().unwrap().starts_with("issuing")
        });
        assert_eq!(
            issuing.count(),
            1,
            "{name} has destroyed what signs no more"
        );
    }

    // One server's own issuing CA and JWT key, too.
    for what in [What::Issuing, What::Jwt] {
        let started = west
            .admin
            .rotate(order(what, Stage::Tainted))
            .await
            .unwrap();
        until(&mut west.admin, started.id, "tainted").await;
    }
}
