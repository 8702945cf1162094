//! The demonstration itself, where it must not go well. (`make test` runs it whole.)

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::namespace;
use crate::support;

#[test]
fn interrupted_at_any_moment_the_demonstration_leaves_nothing_behind() {
    let Some(_turn) = support::turn("interrupted demo") else {
        return;
    };
    for (signal, moment) in [
        (Signal::SIGINT, 150),
        (Signal::SIGTERM, 900),
        (Signal::SIGINT, 3000),
    ] {
        let before = namespace::with_prefix("hfd");
        let demo = Command::new(support::binary())
            .args(["demo", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(moment));
        let pid = demo.id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
        let asked = Instant::now();
        let output = demo.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        assert!(asked.elapsed() < Duration::from_secs(10));
        assert_eq!(namespace::with_prefix("hfd"), before);
        let pins = format!("/sys/fs/bpf/handfast-demo-hfd{pid:x}0");
        assert!(!std::path::Path::new(&pins).exists());
    }
}

#[test]
fn a_killed_demonstration_is_swept_by_the_next_lab() {
    let Some(_turn) = support::turn("killed demo") else {
        return;
    };
    let mut demo = Command::new(support::binary())
        .args(["demo", "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    let prefix = format!("hfd{:x}", demo.id());
    demo.kill().unwrap();
    demo.wait().unwrap();
    assert!(!namespace::with_prefix(&prefix).is_empty());
    crate::harness::lab::sweep();
    assert!(namespace::with_prefix(&prefix).is_empty());
}

#[test]
fn without_root_the_demonstration_names_what_is_missing() {
    let Some(_turn) = support::turn("demo without root") else {
        return;
    };
    let said = support::as_nobody(&["demo"]);
    support::fails(&said, &["root", "nothing was changed"]);
}
