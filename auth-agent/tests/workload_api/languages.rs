//! Client libraries of other languages, each with a real agent and CA: whatever they say, they get their SVIDs.
//!
//! They come from Debian (`golang-google-grpc-dev`, `libgrpc++-dev`, `libgrpc-java` with `libnetty-java`,
//! `libperfmark-java` and a JDK of 17 or later), and
//! what is not installed is skipped with that reason. Python's is in `python`, Rust's in `rust_client`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::agent::Agent;
use crate::support::Ca;

/// Where Debian puts Go's libraries and Java's.
const GO: &str = "/usr/share/gocode";
const JAVA: &str = "/usr/share/java";
const JARS: &str = "grpc-api grpc-context grpc-core grpc-netty grpc-stub guava \
                    netty-buffer netty-codec netty-codec-http netty-codec-http2 netty-codec-socks netty-common \
                    netty-handler netty-handler-proxy netty-resolver netty-transport \
                    netty-transport-native-unix-common perfmark-api";

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/conformance/clients")
        .join(name)
}

/// Runs what builds a client; false: what it needs is not there.
fn built(command: &mut Command) -> bool {
    match command.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => false,
    }
}

fn is_there(path: &str) -> bool {
    Path::new(path).exists()
}

fn cpp(folder: &Path) -> Option<Command> {
    let flags = Command::new("pkg-config")
        .args(["--cflags", "--libs", "grpc++"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let flags = String::from_utf8(flags.stdout).unwrap();
    let client = folder.join("client");
    let mut compiler = Command::new("g++");
    compiler.arg("-o").arg(&client).arg(source("client.cc"));
    built(compiler.args(flags.split_whitespace())).then(|| Command::new(client))
}

fn go(folder: &Path) -> Option<Command> {
    if !is_there(&format!("{GO}/src/google.golang.org/grpc")) {
        return None;
    }
    let client = folder.join("client");
    let mut compiler = Command::new("go");
    compiler.args(["build", "-o"]).arg(&client);
    compiler.arg(source("client.go"));
    compiler.env("GO111MODULE", "off").env("GOPATH", GO);
    built(&mut compiler).then(|| Command::new(client))
}

fn java(folder: &Path) -> Option<Command> {
    let jars: Vec<String> = JARS
        .split_whitespace()
        .map(|jar| format!("{JAVA}/{jar}.jar"))
        .collect();
    if !jars.iter().all(|jar| is_there(jar)) {
        return None;
    }
    let path = format!("{}:{}", folder.display(), jars.join(":"));
    let mut compiler = Command::new("javac");
    compiler.args(["-cp", &path, "-d"]).arg(folder);
    built(compiler.arg(source("Client.java"))).then(|| {
        let mut client = Command::new("java");
        client.args(["-cp", &path, "Client"]);
        client
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cpp_client_gets_its_svids_from_a_real_agent() {
    fetch("C++", cpp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_go_client_gets_its_svids_from_a_real_agent() {
    fetch("Go", go).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_java_client_gets_its_svids_from_a_real_agent() {
    fetch("Java", java).await;
}

async fn fetch(language: &str, build: fn(&Path) -> Option<Command>) {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut client) = tokio::task::block_in_place(|| build(folder.path())) else {
        eprintln!("skipped: {language}: its gRPC library or compiler is not installed");
        return;
    };
    let mut ca = Ca::start("example.org").await;
    let agent = Agent::start(&mut ca).await;
    let path = agent.path();
    let output = tokio::task::block_in_place(|| client.arg(&path).output().unwrap());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{language}: {errors}");
    let said = String::from_utf8(output.stdout).unwrap();
    let messages: Vec<Vec<u8>> = said
        .lines()
        .map(|line| data_encoding::HEXLOWER.decode(line.as_bytes()).unwrap())
        .collect();
    let [svids, tokens] = messages.as_slice() else {
        panic!("{language}: {said}");
    };
    let svids: handfast_agent::workload_api::proto::X509svidResponse =
        prost::Message::decode(svids.as_slice()).unwrap();
    let ids: Vec<&str> = svids
        .svids
        .iter()
        .map(|svid| svid.spiffe_id.as_str())
        .collect();
    assert_eq!(
        ids,
        ["spiffe://example.org/web", "spiffe://example.org/api"],
        "{language}"
    );
    let tokens: handfast_agent::workload_api::proto::JwtsvidResponse =
        prost::Message::decode(tokens.as_slice()).unwrap();
    assert_eq!(tokens.svids.len(), 2, "{language}");
    agent.stop().await;
}
