//! The demonstration itself, where it must not go well. (`make test` runs it whole.)

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{namespace, wait};
use crate::support::{self, SOON};

/// Waits until a demonstration has made something; the prefix of its names.
fn begun(pid: u32) -> String {
    let prefix = format!("hfd{pid:x}");
    wait::until("the first namespace", SOON, || {
        Ok((!namespace::with_prefix(&prefix).is_empty()).then_some(()))
    })
    .unwrap();
    prefix
}

#[test]
fn interrupted_at_any_moment_the_demonstration_leaves_nothing_behind() {
    let Some(_turn) = support::turn("interrupted demo") else {
        return;
    };
    for (signal, moment) in [
        (Signal::SIGINT, 0),
        (Signal::SIGTERM, 750),
        (Signal::SIGINT, 2850),
    ] {
        let before = namespace::with_prefix("hfd");
        let demo = Command::new(support::binary())
            .args(["demo", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = demo.id();
        begun(pid);
        std::thread::sleep(Duration::from_millis(moment));
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
        let asked = Instant::now();
        let output = demo.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        assert!(asked.elapsed() < Duration::from_secs(60));
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
    let prefix = begun(demo.id());
    std::thread::sleep(Duration::from_millis(500));
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
