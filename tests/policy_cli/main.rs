//! `handfast policy` as people and pipelines call it: what it prints, what it writes, how it ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod reading;
mod tools;

use std::process::{Command, Output};

use tempfile::TempDir;

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shop");

fn policy(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_handfast"))
        .arg("policy")
        .args(args)
        .env("HANDFAST_CA_SOCKET", "/nonexistent/ca.sock")
        .output()
        .unwrap()
}

fn shop(file: &str) -> String {
    format!("{SHOP}/{file}")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn good(args: &[&str]) -> String {
    let output = policy(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", err(&output));
    out(&output)
}

/// Fails with this exit code, and says why.
#[track_caller]
fn fails(args: &[&str], code: i32) -> String {
    let output = policy(args);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{args:?}: {} {}",
        out(&output),
        err(&output)
    );
    err(&output)
}

fn write(folder: &TempDir, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}
