//! Workloads of a machine itself, told by their control group: proven and encrypted like any other, and nobody else on the
//! machine can use or receive what is theirs; what does not concern them goes on.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use crate::harness::lab::{Lab, underlay};
use crate::harness::mesh::{Node, Pair, spiffe_id, workload_addresses};
use crate::harness::process::{Finished, Process, command};
use crate::harness::wait;
use crate::support::{self, Mesh, PAGE, SOON};

/// `client: good` may reach the server on one port, proven; and the machine's workload whoever is proven.
const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: host}
spec:
  endpointSelector: {matchLabels: {run: nginx}}
  ingress:
    - fromEndpoints: [{matchLabels: {client: good}}]
      authentication: {mode: required}
      toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: machine}
spec:
  endpointSelector: {matchLabels: {client: good}}
  ingress:
    - fromEndpoints: [{matchLabels: {run: nginx}}]
      authentication: {mode: required}
      toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]
";

/// Nothing may reach the machine's workload, nor it anything.
const CLOSED: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: machine}
spec:
  endpointSelector: {matchLabels: {client: good}}
  ingress: [{}]
  ingressDeny:
    - fromEntities: [all]
";

/// Control groups of this test; they go away with it.
struct Groups {
    folder: PathBuf,
}

impl Groups {
    /// Nothing, and a word why, where they cannot be made.
    fn new(lab: &Lab) -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" cgroup2 "));
        let Some(root) = mount.and_then(|line| line.split(' ').nth(1)) else {
            eprintln!("skipped: no unified control groups are mounted");
            return None;
        };
        let folder = Path::new(root).join(lab.name());
        let groups = Self { folder };
        for name in ["unit", "other"] {
            if let Err(error) = std::fs::create_dir_all(groups.at(name)) {
                eprintln!("skipped: control groups cannot be made: {error}");
                return None;
            }
        }
        Some(groups)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command that begins by entering a group.
    fn within(&self, name: &str, words: &[&str]) -> std::process::Command {
        let enter = format!(
            "echo 0 >{}/cgroup.procs && exec \"$@\"",
            self.at(name).display()
        );
        let mut all = vec!["-c", &enter, "sh"];
        all.extend(words);
        command("sh", &all)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let gone = wait::until("the groups' end", SOON, || {
            for name in ["unit", "other", ""] {
                let _ = std::fs::remove_dir(self.at(name));
            }
            Ok((!self.folder.exists()).then_some(()))
        });
        if let Err(error) = gone {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// A web server on every address of a machine, started in a control group.
fn serve(lab: &Lab, node: &Node, groups: &Groups, group: &str, port: u16) -> Process {
    let www = lab.dir().join(format!("www-{group}-{port}"));
    std::fs::create_dir_all(&www).unwrap();
    std::fs::write(www.join("index.html"), PAGE).unwrap();
    let (port_text, www) = (port.to_string(), www.display().to_string());
    let words = [
        "python3",
        "-m",
        "http.server",
        &port_text,
        "--bind",
        "::",
        "--directory",
        &www,
    ];
    let mut command = groups.within(group, &words);
    let process = node
        .host
        .place
        .spawn(&format!("http-{group}-{port}"), &mut command)
        .unwrap();
    wait::until("the web server", SOON, || {
        let local = format!("http://127.0.0.1:{port}/");
        Ok((curl(node, groups, group, &local).code() == 0).then_some(()))
    })
    .unwrap();
    process
}

fn curl(node: &Node, groups: &Groups, group: &str, url: &str) -> Finished {
    let words = ["curl", "-sS", "-g", "--noproxy", "*", "-m", "4", url];
    let mut command = groups.within(group, &words);
    node.host.place.run(&mut command, SOON).unwrap()
}

fn at(address: IpAddr, port: u16) -> String {
    format!("http://{}/", SocketAddr::new(address, port))
}

/// Attaches the group `unit` of node 1 as a workload with an identity.
fn attach(mesh: &Mesh, groups: &Groups, exempt: &[&str]) -> [IpAddr; 2] {
    let id = spiffe_id("unit");
    let words = [
        "entry",
        "create",
        "--spiffe-id",
        &id,
        "--selector",
        "endpoint:unit",
        "--label",
        "client=good",
    ];
    mesh.authority
        .cli(&words)
        .unwrap()
        .success("entry create")
        .unwrap();
    let addresses = workload_addresses(1, 50);
    let [v4, v6] = addresses.map(|address| address.to_string());
    let group = groups.at("unit").display().to_string();
    let mut words = vec![
        "endpoint",
        "add",
        "--cgroup",
        &group,
        "--name",
        "unit",
        "--address",
        &v4,
        "--address",
        &v6,
    ];
    words.extend(exempt);
    mesh.n1
        .cli(&words)
        .unwrap()
        .success("endpoint add")
        .unwrap();
    mesh.n1.identified("unit").unwrap();
    addresses
}

#[test]
fn a_control_group_of_a_machine_is_a_workload_and_nobody_else_is() {
    let Some(_turn) = support::turn("host endpoints") else {
        return;
    };
    let mut mesh = Mesh::start();
    let Some(groups) = Groups::new(&mesh.lab) else {
        return;
    };
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let beside = mesh.workload(&mesh.n1, "beside", &["run=nginx"], 3);
    let (_http, _http_beside) = (
        support::serve(&mesh.lab, &server),
        support::serve(&mesh.lab, &beside),
    );
    mesh.apply(POLICY);
    let own = attach(&mesh, &groups, &[]);
    let far = workload_addresses(2, 2);
    let near = workload_addresses(1, 3);

    // Outward: held until it is proven, from its own address, to the other node and to a workload beside it.
    for address in far.into_iter().chain(near) {
        let said = curl(&mesh.n1, &groups, "unit", &at(address, 80));
        assert_eq!(
            said.stdout,
            PAGE,
            "{address}: {said:?}\n{}",
            mesh.evidence()
        );
    }
    // Nobody else of the machine, whether he lets the kernel choose his address or takes the workload's.
    for address in far {
        let said = curl(&mesh.n1, &groups, "other", &at(address, 80));
        assert_ne!(said.code(), 0, "{address}: {said:?}");
        let source = own[usize::from(address.is_ipv6())].to_string();
        let url = at(address, 80);
        let words = ["curl", "-sS", "-g", "-m", "2", "--interface", &source, &url];
        let mut stolen = groups.within("other", &words);
        let said = mesh.n1.host.place.run(&mut stolen, SOON).unwrap();
        assert_ne!(said.code(), 0, "{address}: {said:?}");
    }

    // Inward: to its own sockets, not to others' that listen on every address.
    let _own = serve(&mesh.lab, &mesh.n1, &groups, "unit", 80);
    let _others = serve(&mesh.lab, &mesh.n1, &groups, "other", 8080);
    mesh.apply(&POLICY.replace(
        "      toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]\n",
        "",
    ));
    for address in own {
        for client in [&server, &beside] {
            // The first packet from beside it cannot be held: it is sent once more.
            let page = support::curl(client, &at(address, 80), 10);
            assert_eq!(
                page.as_deref(),
                Ok(PAGE),
                "{} {address}\n{}",
                client.short,
                mesh.evidence()
            );
        }
        assert!(
            support::curl(&server, &at(address, 8080), 2).is_err(),
            "{address}"
        );
    }
    let pairs: Vec<Pair> = mesh.n1.json(&["pair", "list"]).unwrap();
    assert!(
        pairs.iter().any(|pair| pair.local == spiffe_id("unit")),
        "{pairs:?}"
    );
    let other = mesh.status(&mesh.n1);
    assert!(other.packets("other-workload") > 0, "{other:?}");

    // The machine's own traffic is none of ours.
    for address in underlay(1) {
        let said = mesh.n2.host.place.run(
            &mut command("curl", &["-sS", "-g", "-m", "5", &at(address, 8080)]),
            SOON,
        );
        assert_eq!(said.unwrap().stdout, PAGE, "{address}");
    }

    // The kernel goes on without the agent, and the next agent takes over.
    mesh.n1.agent().unwrap().kill();
    let said = curl(&mesh.n1, &groups, "unit", &at(far[0], 80));
    assert_eq!(said.stdout, PAGE, "{said:?}");
    assert_ne!(curl(&mesh.n1, &groups, "other", &at(far[0], 80)).code(), 0);
    mesh.n1.run().unwrap();
    mesh.n1.identified("unit").unwrap();
    let page = support::curl(&server, &at(own[0], 80), 5);
    assert_eq!(page.as_deref(), Ok(PAGE), "{}", mesh.evidence());

    // Taken away, nothing of it is left.
    mesh.n1
        .cli(&["endpoint", "remove", "unit"])
        .unwrap()
        .success("endpoint remove")
        .unwrap();
    let shown = mesh
        .n1
        .host
        .place
        .run(&mut command("ip", &["-o", "addr", "show", "lo"]), SOON);
    let shown = shown.unwrap().stdout;
    assert!(
        own.iter().all(|a| !shown.contains(&a.to_string())),
        "{shown}"
    );
    assert_eq!(host_pins(&mesh.n1), Vec::<String>::new());
}

#[test]
fn a_policy_that_closes_a_machine_leaves_its_exempt_ports_open() {
    let Some(_turn) = support::turn("host endpoints, exempt") else {
        return;
    };
    let mesh = Mesh::start();
    let Some(groups) = Groups::new(&mesh.lab) else {
        return;
    };
    let client = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let own = attach(&mesh, &groups, &["--exempt", "tcp/2222"]);
    let _ssh = serve(&mesh.lab, &mesh.n1, &groups, "unit", 2222);
    let _web = serve(&mesh.lab, &mesh.n1, &groups, "unit", 80);
    for port in [80, 2222] {
        let page = support::curl(&client, &at(own[0], port), 10);
        assert_eq!(page.as_deref(), Ok(PAGE), "{port}\n{}", mesh.evidence());
    }
    mesh.apply(CLOSED);
    for address in own {
        assert!(
            support::curl(&client, &at(address, 80), 2).is_err(),
            "{address}"
        );
        let page = support::curl(&client, &at(address, 2222), 5);
        assert_eq!(page.as_deref(), Ok(PAGE), "{address}\n{}", mesh.evidence());
    }
    let listed = mesh.n1.cli(&["endpoint", "list"]).unwrap();
    assert!(listed.stdout.contains("tcp/2222"), "{}", listed.stdout);
}

/// What a command says as JSON.
fn said(mesh: &Mesh, words: &[&str]) -> serde_json::Value {
    let said = mesh.authority.cli(words).unwrap();
    let said = said.success(&words.join(" ")).unwrap();
    serde_json::from_str(&said.stdout).unwrap()
}

#[test]
fn a_policy_that_cuts_ssh_goes_back_by_itself_and_one_that_is_confirmed_stays() {
    let Some(_turn) = support::turn("host endpoints, confirm or roll back") else {
        return;
    };
    let mesh = Mesh::start();
    let Some(groups) = Groups::new(&mesh.lab) else {
        return;
    };
    let client = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let own = attach(&mesh, &groups, &["--no-exempt"]);
    let _ssh = serve(&mesh.lab, &mesh.n1, &groups, "unit", 22);
    let reached = |limit| support::curl(&client, &at(own[0], 22), limit);
    assert_eq!(reached(10).as_deref(), Ok(PAGE), "{}", mesh.evidence());

    let path = mesh.lab.dir().join("cut.yaml");
    std::fs::write(&path, CLOSED).unwrap();
    let path = path.display().to_string();
    let apply = [
        "policy",
        "apply",
        &path,
        "--confirm-within",
        "20s",
        "-o",
        "json",
    ];
    let applied = said(&mesh, &apply);
    assert_eq!(
        applied["on_trial"]["policies"][0]["key"],
        "CiliumNetworkPolicy/machine"
    );
    wait::until("the cut", SOON, || Ok(reached(2).is_err().then_some(()))).unwrap();
    let second = mesh.authority.cli(&["policy", "apply", &path]).unwrap();
    support::fails(
        &second,
        &["policy confirm", "policy revert", "nothing was changed"],
    );
    // Nobody who came by SSH can confirm.
    wait::until("the way back", SOON.saturating_mul(2), || {
        Ok((reached(2).as_deref() == Ok(PAGE)).then_some(()))
    })
    .unwrap();
    let status = said(&mesh, &["policy", "status", "-o", "json"]);
    assert!(status["on_trial"].is_null(), "{status}");
    let late = mesh.authority.cli(&["policy", "confirm"]).unwrap();
    support::fails(&late, &["nothing was changed"]);

    said(&mesh, &apply);
    said(&mesh, &["policy", "confirm", "-o", "json"]);
    wait::until("the cut", SOON, || Ok(reached(2).is_err().then_some(()))).unwrap();
    let listed = said(&mesh, &["policy", "list", "-o", "json"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    let acts = ["ca", "audit", "--act", "policy", "--output", "json"];
    let acts = mesh.authority.cli(&acts).unwrap().stdout;
    for word in [
        "policy.revert",
        "nobody confirmed them in time",
        "policy.confirm",
    ] {
        assert!(acts.contains(word), "no {word:?} in: {acts}");
    }
}

#[test]
fn a_group_that_is_made_anew_is_found_again_and_what_cannot_be_is_refused() {
    let Some(_turn) = support::turn("host endpoints, refused") else {
        return;
    };
    let mesh = Mesh::start();
    let Some(groups) = Groups::new(&mesh.lab) else {
        return;
    };
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let _http = support::serve(&mesh.lab, &server);
    attach(&mesh, &groups, &[]);
    let far = workload_addresses(2, 2)[0];
    let reaches = || curl(&mesh.n1, &groups, "unit", &at(far, 80)).stdout == PAGE;
    assert!(reaches(), "{}", mesh.evidence());
    // As systemd does when a unit is started anew.
    std::fs::remove_dir(groups.at("unit")).unwrap();
    std::fs::create_dir(groups.at("unit")).unwrap();
    wait::until("the new group", SOON, || Ok(reaches().then_some(()))).unwrap();

    let unit = groups.at("unit").display().to_string();
    let below = groups.at("unit/below");
    std::fs::create_dir(&below).unwrap();
    let below_text = below.display().to_string();
    let (own, free) = (
        underlay(1)[0].to_string(),
        workload_addresses(1, 51)[0].to_string(),
    );
    for (words, complaint) in [
        (
            vec!["--cgroup", &below_text, "--address", &free],
            ["overlaps", "nothing was changed"],
        ),
        (
            vec!["--host", "--address", &free],
            ["overlaps", "nothing was changed"],
        ),
        (
            vec!["--unit", "no-such.service", "--address", &free],
            ["no-such.service", "nothing was changed"],
        ),
        (
            vec!["--cgroup", "/tmp", "--address", &free],
            ["/tmp", "control group"],
        ),
        (
            vec!["--cgroup", &unit, "--name", "x", "--address", &own],
            ["underlay", "nothing was changed"],
        ),
        (
            vec!["--cgroup", &unit, "--name", "x", "--address", "10.99.0.1"],
            ["prefixes", "nothing was changed"],
        ),
    ] {
        let mut all = vec!["endpoint", "add"];
        all.extend(&words);
        support::fails(&mesh.n1.cli(&all).unwrap(), &complaint);
    }
    std::fs::remove_dir(&below).unwrap();
    let both = [
        "endpoint",
        "add",
        "--host",
        "--netns",
        "x",
        "--address",
        &free,
    ];
    assert_eq!(mesh.n1.cli(&both).unwrap().code(), 2);
    // None of that has left anything; everything goes with the agent.
    let (data, run, bpf) = (
        mesh.n1.data_dir(),
        mesh.n1.run_dir(),
        mesh.n1.bpf_dir().to_owned(),
    );
    let mut detach = mesh.n1.command(&["agent", "detach", "--data-dir"]);
    detach.arg(data).arg("--run-dir").arg(run);
    detach.arg("--bpf-dir").arg(bpf);
    let detached = mesh.n1.host.place.run(&mut detach, SOON).unwrap();
    assert_eq!(detached.code(), 0, "{detached:?}");
    assert_eq!(host_pins(&mesh.n1), Vec::<String>::new());
    let listens = mesh
        .n1
        .host
        .ns
        .inside(|| Ok(TcpListener::bind((workload_addresses(1, 50)[0], 0)).is_ok()));
    assert!(!listens.unwrap(), "its address is still there");
}

/// Pinned links of host endpoints.
fn host_pins(node: &Node) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(node.bpf_dir()) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name.contains("host"))
        .filter(|name| name.contains('-'))
        .collect()
}
