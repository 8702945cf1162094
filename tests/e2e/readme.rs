//! The README's first mesh, by its very commands: blocks that begin with "```sh HOST" run on that host.
//!
//! Hosts are namespaces with folders of their own for everything that the commands touch, pins included.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use crate::harness::lab::{Host, Lab};
use crate::harness::process::command;
use crate::harness::wait;
use crate::support::{self, SOON, binary};

/// Paths of which every machine has its own.
const OWN: &[&str] = &[
    "/run/handfast",
    "/run/netns",
    "/var/lib/handfast",
    "/sys/fs/bpf",
];
/// For one block; `curl` and the tunnel's first handshake among it.
const BLOCK: Duration = Duration::from_secs(40);

#[test]
fn the_commands_of_the_readme_make_a_mesh_and_take_it_away() {
    let Some(_turn) = support::turn("README") else {
        return;
    };
    let text = std::fs::read_to_string(support::repository("README.md")).unwrap();
    let blocks = blocks(&text);
    assert!(
        blocks.len() >= 5,
        "the README has only {} blocks for hosts",
        blocks.len()
    );
    let lab = Lab::create("hfr").unwrap();
    let host = |short, last| {
        let address = IpAddr::from([192, 0, 2, last]);
        let host = lab.host_with(short, &[address], OWN).unwrap();
        std::fs::create_dir(host.dir.join("home")).unwrap();
        host
    };
    let hosts = [host("ca", 10), host("web1", 11), host("db1", 12)];
    for (number, (name, script)) in blocks.iter().enumerate() {
        let host = hosts
            .iter()
            .find(|host| host.short == *name)
            .unwrap_or_else(|| panic!("the README has a block for {name}, which is no host"));
        eprintln!("on {name}:\n{script}");
        run(host, number, script);
        carry_tokens(&hosts);
    }
    for host in &hosts[1..] {
        let links = host
            .place
            .run(&mut command("ip", &["-o", "link"]), SOON)
            .unwrap()
            .stdout;
        assert!(!links.contains("hf"), "left on {}: {links}", host.short);
    }
}

/// The blocks in their order: host and script.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(host) = line.strip_prefix("```sh ") else {
            continue;
        };
        let script: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push((host.trim().to_owned(), script.join("\n")));
    }
    blocks
}

/// Runs a block in the host's home. What it leaves in the background has until its socket is there.
fn run(host: &Host, number: usize, script: &str) {
    let path = std::env::var("PATH").unwrap_or_default();
    let with_us = format!(
        "{}:{path}:/usr/sbin:/sbin",
        binary().parent().unwrap().display()
    );
    // Entering the host's mounts ends at its root, whatever the folder was before.
    let script = format!("cd {}\n{script}", host.dir.join("home").display());
    let said = host
        .place
        .run(
            command("bash", &["-euo", "pipefail", "-c", &script]).env("PATH", with_us),
            BLOCK,
        )
        .unwrap();
    assert!(
        said.status.success(),
        "block {number} on {}: {}\n{script}\n{}\n{}",
        host.short,
        said.status,
        said.stdout,
        said.stderr
    );
    eprintln!("{}", said.stdout);
    for (start, socket) in [("ca serve", "ca.sock"), ("agent run", "admin.sock")] {
        if script.contains(start) {
            let socket = host.dir.join("root/run/handfast").join(socket);
            wait::until(start, SOON, || Ok(socket.exists().then_some(()))).unwrap();
        }
    }
    if script.contains("http.server") {
        wait::pause(Duration::from_secs(1)).unwrap();
    }
}

/// "Carry each file to its machine by a way that you trust."
fn carry_tokens(hosts: &[Host; 3]) {
    let home = |host: &Host| host.dir.join("home");
    for host in &hosts[1..] {
        let file = format!("{}.join", host.short);
        let from = home(&hosts[0]).join(&file);
        let to = home(host).join(&file);
        if from.exists() && !Path::new(&to).exists() {
            std::fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn blocks_are_found_with_their_hosts() {
    let text = "a\n```sh ca\none\ntwo\n```\n```sh\nnot this\n```\n```sh web1\nthree\n```\n";
    assert_eq!(
        blocks(text),
        [
            ("ca".into(), "one\ntwo".into()),
            ("web1".into(), "three".to_owned())
        ]
    );
}
