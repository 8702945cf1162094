//! What users do wrong: every time a clear error, exit code 1, and nothing changed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::harness::lab::{Lab, underlay};
use crate::harness::mesh::{Authority, Node, TRUST_DOMAIN, workload_addresses};
use crate::harness::process::{Finished, command};
use crate::harness::wait;
use crate::support::{self, Mesh, PAGE, SOON, binary, fails};

/// A CA and one node's host, where nothing has joined yet.
fn authority_and_host() -> (Node, Authority, Lab) {
    let lab = Lab::create("hft").unwrap();
    let authority = Authority::start(&lab, binary()).unwrap();
    let node = Node::create(&lab, binary(), 1).unwrap();
    (node, authority, lab)
}

#[test]
fn a_token_works_once_and_not_after_its_time() {
    let Some(_turn) = support::turn("tokens") else {
        return;
    };
    let (node, authority, lab) = authority_and_host();
    let other = Node::create(&lab, binary(), 2).unwrap();
    let token = lab.dir().join("once.join");
    node.token(&authority, &token, "10m").unwrap();
    node.join_with(&token).unwrap().success("join").unwrap();
    fails(&other.join_with(&token).unwrap(), &["token", "used"]);
    assert!(!other.data_dir().join("node.pem").exists());

    let late = lab.dir().join("late.join");
    other.token(&authority, &late, "1s").unwrap();
    wait::pause(Duration::from_millis(2100)).unwrap();
    fails(&other.join_with(&late).unwrap(), &["token", "expired"]);

    let garbled = lab.dir().join("garbled.join");
    std::fs::write(&garbled, "not a token").unwrap();
    fails(&other.join_with(&garbled).unwrap(), &["token"]);
}

#[test]
fn settings_that_cannot_be_meant_stop_an_agent_before_it_begins() {
    let Some(_turn) = support::turn("settings") else {
        return;
    };
    let (node, authority, lab) = authority_and_host();
    let token = lab.dir().join("settings.join");
    node.token(&authority, &token, "10m").unwrap();
    node.join_with(&token).unwrap().success("join").unwrap();
    let run = |also: &[&str]| {
        let mut run = command(binary(), &["agent", "run", "--metrics", "off"]);
        run.arg("--data-dir").arg(node.data_dir());
        run.arg("--run-dir").arg(node.run_dir());
        run.arg("--bpf-dir").arg(node.bpf_dir()).args(also);
        node.host.place.run(&mut run, SOON).unwrap()
    };
    for device in ["hf-wg0", "hf-wg1", "hf-xfrm0"] {
        let said = run(&["--hold-device", device]);
        fails(&said, &["--hold-device", device, "nothing was changed"]);
    }
    assert_eq!(run(&["--session-port", "0"]).code(), 2);

    let missing = lab.dir().join("missing.yaml");
    let said = run(&["--policy", missing.to_str().unwrap()]);
    fails(&said, &["missing.yaml", "cannot be read"]);
    let wrong = lab.dir().join("wrong.yaml");
    std::fs::write(&wrong, "kind: Nonsense\n").unwrap();
    let said = run(&["--policy", wrong.to_str().unwrap()]);
    fails(&said, &["wrong.yaml"]);
    assert!(!node.bpf_dir().exists(), "nothing was attached");
}

#[test]
fn who_is_a_node_already_joins_again_only_while_its_agent_does_not_run() {
    let Some(_turn) = support::turn("join again") else {
        return;
    };
    let (node, authority, lab) = authority_and_host();
    let token = |name: &str| {
        let file = lab.dir().join(name);
        node.token(&authority, &file, "10m").unwrap();
        file
    };
    let first = token("first.join");
    node.join_with(&first).unwrap().success("join").unwrap();
    std::fs::create_dir_all(node.run_dir()).unwrap();
    let lock = std::fs::File::create(node.run_dir().join("agent.lock")).unwrap();
    lock.lock().unwrap();
    let second = token("second.join");
    let again = || {
        let mut join = command(binary(), &["agent", "join", "--again"]);
        join.arg(&second).arg("--data-dir").arg(node.data_dir());
        join.arg("--run-dir").arg(node.run_dir());
        node.host.place.run(&mut join, SOON).unwrap()
    };
    fails(&again(), &["an agent runs", "nothing was changed"]);
    drop(lock);
    // The token was not used up by that.
    again().success("join again").unwrap();
}

#[test]
fn an_agent_whose_clock_is_a_day_off_is_told_so_and_its_token_is_not_used_up() {
    let Some(_turn) = support::turn("clock") else {
        return;
    };
    let (node, authority, lab) = authority_and_host();
    let Some(shim) = tomorrow(&lab) else {
        eprintln!("skipped: clock: no C compiler to build the shifted clock with");
        return;
    };
    let token = lab.dir().join("clock.join");
    node.token(&authority, &token, "10m").unwrap();
    let join = |clock: Option<&Path>| {
        let mut join = command(binary(), &["agent", "join"]);
        join.arg(&token).arg("--data-dir").arg(node.data_dir());
        if let Some(clock) = clock {
            join.env("LD_PRELOAD", clock);
        }
        node.host.place.run(&mut join, SOON).unwrap()
    };
    fails(&join(Some(&shim)), &["clock"]);
    join(None).success("join with the right clock").unwrap();
}

/// A library that moves the wall clock a day ahead for one program.
fn tomorrow(lab: &Lab) -> Option<std::path::PathBuf> {
    let source = lab.dir().join("tomorrow.c");
    std::fs::write(
        &source,
        "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
         int clock_gettime(clockid_t id, struct timespec *t) {\n\
         long r = syscall(SYS_clock_gettime, id, t);\n\
         if (r == 0 && id == CLOCK_REALTIME) t->tv_sec += 86400;\n\
         return (int)r;\n}\n",
    )
    .unwrap();
    let library = lab.dir().join("tomorrow.so");
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .status();
    built
        .is_ok_and(|status| status.success())
        .then_some(library)
}

#[test]
fn an_entry_for_an_invalid_spiffe_id_is_refused() {
    let Some(_turn) = support::turn("entries") else {
        return;
    };
    let (_node, authority, _lab) = authority_and_host();
    let list = || {
        authority
            .cli(&["entry", "list", "--output", "json"])
            .unwrap()
            .stdout
    };
    let before = list();
    let foreign = "spiffe://somebody.else/web".to_owned();
    for bad in [
        "web",
        "https://demo.handfast/web",
        "spiffe://demo.handfast/web/",
        "spiffe://demo.handfast//web",
        "spiffe://demo.handfast/../web",
        "spiffe://demo.handfast/we b",
        "spiffe://DEMO/web?x=1",
        "spiffe://demo.handfast/handfast/ca",
        &foreign,
    ] {
        let said = authority
            .cli(&[
                "entry",
                "create",
                "--spiffe-id",
                bad,
                "--selector",
                "netns:web",
            ])
            .unwrap();
        assert!(matches!(said.code(), 1 | 2), "{bad}: {said:?}");
        assert!(
            said.stderr.to_lowercase().contains("spiffe"),
            "{bad}: {}",
            said.stderr
        );
    }
    let id = format!("spiffe://{TRUST_DOMAIN}/web");
    let said = authority
        .cli(&["entry", "create", "--spiffe-id", &id, "--selector", "netns"])
        .unwrap();
    assert!(matches!(said.code(), 1 | 2), "{said:?}");
    assert!(said.stderr.contains("selector"), "{}", said.stderr);
    assert_eq!(list(), before);
}

#[test]
fn endpoints_and_peers_that_cannot_be_are_refused_and_change_nothing() {
    let Some(_turn) = support::turn("endpoints") else {
        return;
    };
    let mut mesh = Mesh::start();
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let client = mesh.workload(&mesh.n1, "good", &["client=good"], 2);
    let second = mesh.lab.workload("second").unwrap();
    let _http = support::serve(&mesh.lab, &server);
    let list = || {
        mesh.n1
            .cli(&["endpoint", "list", "--output", "json"])
            .unwrap()
            .stdout
    };
    let add = |netns: &str, address: &str| {
        mesh.n1
            .cli(&["endpoint", "add", "--netns", netns, "--address", address])
            .unwrap()
    };
    // Announcing goes on in the background: begin when it is done.
    let url = support::url(workload_addresses(2, 2)[0]);
    assert_eq!(support::curl(&client, &url, 5).as_deref(), Ok(PAGE));
    let before = list();
    fails(
        &add(second.ns.name(), "10.77.1.2"),
        &["10.77.1.2", "in use"],
    );
    fails(
        &add(second.ns.name(), "10.77.9.2"),
        &["10.77.9.2", "prefix"],
    );
    fails(
        &add("hf-no-such-namespace", "10.77.1.9"),
        &["does not exist"],
    );
    // A workload that is one already keeps its link.
    for again in [
        &["--name", "again"][..],
        &["--name", "again", "--address", "10.77.1.2"],
    ] {
        let words = [&["endpoint", "add", "--netns", client.ns.name()][..], again].concat();
        fails(&mesh.n1.cli(&words).unwrap(), &["nothing was changed"]);
    }
    assert_eq!(list(), before);
    assert_eq!(second.links(), ["lo"]);
    assert_eq!(support::curl(&client, &url, 5).as_deref(), Ok(PAGE));

    speak_garbage(&mesh);
    assert!(mesh.n2.agent().unwrap().running());
    assert_eq!(support::curl(&client, &url, 5).as_deref(), Ok(PAGE));
}

/// On the port of sessions: bytes that are no TLS, half a greeting, nothing at all, a great many connections.
fn speak_garbage(mesh: &Mesh) {
    let [v4, v6] = underlay(2).map(|address| SocketAddr::new(address, 7250));
    mesh.n1
        .host
        .ns
        .inside(|| {
            let mut silent = Vec::new();
            for to in [v4, v6] {
                for garbage in [
                    b"GET / HTTP/1.1\r\n\r\n".as_slice(),
                    &[0x16, 0x03, 0x01, 0xff, 0xff, 0x01],
                    &[0xff; 70_000],
                ] {
                    let mut stream = TcpStream::connect_timeout(&to, SOON)?;
                    stream.set_read_timeout(Some(SOON))?;
                    // It may hang up before it has read all.
                    let _ = stream.write_all(garbage);
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                    let mut answer = Vec::new();
                    let _ = stream.read_to_end(&mut answer);
                    assert!(answer.len() < 1000);
                }
                for _ in 0..50 {
                    silent.push(TcpStream::connect_timeout(&to, SOON)?);
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_ca_folder_that_is_not_ours_or_open_or_initialised_is_refused() {
    let Some(_turn) = support::turn("CA folder") else {
        return;
    };
    let lab = Lab::create("hft").unwrap();
    let host = lab.host("ca", 10).unwrap();
    let init = |dir: &Path| {
        let mut init = command(binary(), &["ca", "init", "--trust-domain", TRUST_DOMAIN]);
        init.args(["--prefix-range", "10.77.0.0/16", "--dir"])
            .arg(dir);
        host.place.run(&mut init, SOON).unwrap()
    };
    let serve = |dir: &Path| {
        let mut serve = command(
            binary(),
            &["ca", "serve", "--listen", "127.0.0.1:7251", "--dir"],
        );
        serve
            .arg(dir)
            .arg("--admin-socket")
            .arg(host.dir.join("ca.sock"));
        host.place.run(&mut serve, SOON).unwrap()
    };

    let foreign = host.dir.join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::set_permissions(&foreign, PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::write(foreign.join("thesis.tex"), "years of work").unwrap();
    let before = contents(&foreign);
    fails(&init(&foreign), &["foreign"]);
    fails(&serve(&foreign), &["foreign"]);
    assert_eq!(contents(&foreign), before);

    let ours = host.dir.join("ours");
    init(&ours).success("ca init").unwrap();
    let before = contents(&ours);
    fails(&init(&ours), &["already"]);
    assert_eq!(contents(&ours), before);

    std::fs::set_permissions(&ours, PermissionsExt::from_mode(0o755)).unwrap();
    fails(&serve(&ours), &["ours"]);
    assert_eq!(contents(&ours), before);
    std::fs::set_permissions(&ours, PermissionsExt::from_mode(0o700)).unwrap();

    let _taken = host
        .ns
        .inside(|| Ok(std::net::TcpListener::bind("127.0.0.1:7251")?))
        .unwrap();
    fails(&serve(&ours), &["127.0.0.1:7251", "in use"]);
}

fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap_or_default())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_full_disk_changes_nothing_and_the_ca_goes_on_when_there_is_room() {
    let Some(_turn) = support::turn("full disk") else {
        return;
    };
    let lab = Lab::create("hft").unwrap();
    // The authority of the lab keeps its data below; a small disk is put there before it starts.
    let data = lab.dir().join("ca");
    std::fs::create_dir_all(&data).unwrap();
    let disk = Disk::mount(&data, "4m");
    let authority = Authority::start(&lab, binary()).unwrap();
    authority.entry("before", "before", &[]).unwrap();
    let list = || {
        authority
            .cli(&["entry", "list", "--output", "json"])
            .unwrap()
            .stdout
    };
    let before = list();
    let filler = data.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let labels: Vec<String> = (0..60)
        .map(|n| format!("label{n}={}", "x".repeat(60)))
        .collect();
    let mut said: Option<Finished> = None;
    // The store may have pages of its own left: it is full at the latest after some more.
    for number in 0..200 {
        let id = format!("spiffe://{TRUST_DOMAIN}/entry{number}");
        let mut words = vec![
            "entry",
            "create",
            "--spiffe-id",
            &id,
            "--selector",
            "netns:x",
        ];
        for label in &labels {
            words.extend(["--label", label]);
        }
        let tried = authority.cli(&words).unwrap();
        if !tried.status.success() {
            said = Some(tried);
            break;
        }
    }
    fails(&said.unwrap(), &["full"]);
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    assert!(list().contains("/before"), "{before}");
    authority.entry("after", "after", &[]).unwrap();
    drop(authority);
    drop(disk);
}

/// A small disk, unmounted in any case.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mount(at: &Path, size: &str) -> Self {
        let options = format!("size={size},mode=0700");
        crate::harness::process::tool(
            "mount",
            &["-t", "tmpfs", "-o", &options, "tmpfs", at.to_str().unwrap()],
        )
        .unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn an_agent_without_root_bpffs_or_its_port_says_what_is_missing() {
    let Some(_turn) = support::turn("agent's needs") else {
        return;
    };
    let (node, authority, lab) = authority_and_host();
    node.join(&authority).unwrap();
    let run = |bpf: &Path| {
        let mut run = command(binary(), &["agent", "run", "--bpf-dir"]);
        run.arg(bpf)
            .arg("--data-dir")
            .arg(node.data_dir())
            .arg("--run-dir")
            .arg(node.run_dir());
        node.host.place.run(&mut run, SOON).unwrap()
    };
    fails(&run(&lab.dir().join("no-bpffs")), &["bpffs"]);
    let [v4, _] = underlay(1);
    let taken = node
        .host
        .ns
        .inside(|| Ok(std::net::TcpListener::bind(SocketAddr::new(v4, 7250))?))
        .unwrap();
    fails(&run(node.bpf_dir()), &["7250", "in use"]);
    drop(taken);
    fails(&support::as_nobody(&["agent", "run"]), &["root"]);
    fails(&support::as_nobody(&["endpoint", "list"]), &[]);
}
