//! The log as an operator and an attacker see it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::file::files;
use super::{Act, Audit, Filter, read, verify};
use crate::Error;

fn act(n: usize) -> Act {
    Act::done(
        "entry.create",
        "uid:0",
        format!("spiffe://example.org/w{n}"),
    )
    .with("n", n)
}

async fn written(count: usize) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("audit");
    let audit = Audit::open(&dir, "ca1", None).unwrap();
    for n in 0..count {
        audit.record(vec![act(n)]).await.unwrap();
    }
    (folder, dir)
}

/// What somebody does to the lines.
type Change = fn(Vec<String>) -> Vec<String>;

fn only_file(dir: &Path) -> PathBuf {
    files(dir).unwrap().pop().unwrap()
}

fn rewrite(dir: &Path, change: impl FnOnce(Vec<String>) -> Vec<String>) {
    let path = only_file(dir);
    let lines = fs::read_to_string(&path).unwrap();
    let lines = change(lines.lines().map(ToOwned::to_owned).collect());
    fs::write(&path, lines.join("\n") + "\n").unwrap();
}

#[tokio::test]
async fn a_log_goes_on_after_a_restart_and_its_chain_holds() {
    let (_folder, dir) = written(5).await;
    let audit = Audit::open(&dir, "ca1", None).unwrap();
    audit.record(vec![act(5), act(6)]).await.unwrap();
    let verified = verify(&dir, &[audit.position()]).unwrap();
    assert_eq!(verified.entries, 7);
    let mut subjects = Vec::new();
    let filter = Filter {
        subject: Some("/w6".to_owned()),
        ..Filter::default()
    };
    read(&dir, &filter, |record| {
        subjects.push(record.number);
        true
    })
    .unwrap();
    assert_eq!(subjects, [7]);
}

#[tokio::test]
async fn a_changed_removed_inserted_or_swapped_line_is_found_and_located() {
    let cases: [(&str, Change, &str); 4] = [
        (
            "changed",
            |mut lines| {
                lines[2] = lines[2].replace("/w2", "/w9");
                lines
            },
            "line 3: its hash does not fit",
        ),
        (
            "removed",
            |mut lines| {
                lines.remove(2);
                lines
            },
            "line 3: it is number 4",
        ),
        (
            "put in",
            |mut lines| {
                lines.insert(2, lines[1].clone());
                lines
            },
            "line 3: it is number 2",
        ),
        (
            "swapped",
            |mut lines| {
                lines.swap(1, 2);
                lines
            },
            "line 2: it is number 3",
        ),
    ];
    for (what, change, said) in cases {
        let (_folder, dir) = written(5).await;
        rewrite(&dir, change);
        let error = verify(&dir, &[]).unwrap_err();
        assert!(matches!(error, Error::AuditBroken { .. }), "{what}");
        assert!(error.to_string().contains(said), "{what}: {error}");
    }
}

#[tokio::test]
async fn an_end_that_was_cut_off_shows_against_a_signed_head() {
    let (_folder, dir) = written(5).await;
    let head = Audit::open(&dir, "ca1", None).unwrap().position();
    rewrite(&dir, |mut lines| {
        lines.truncate(3);
        lines
    });
    assert_eq!(
        verify(&dir, &[]).unwrap().entries,
        3,
        "the chain alone cannot tell"
    );
    let error = verify(&dir, &[head]).unwrap_err().to_string();
    assert!(error.contains("its end was cut off"), "{error}");
    // Written on, past where it was: the head still says otherwise.
    let audit = Audit::open(&dir, "ca1", None).unwrap();
    for n in 0..4 {
        audit.record(vec![act(n)]).await.unwrap();
    }
    let error = verify(&dir, &[head]).unwrap_err().to_string();
    assert!(
        error.contains("line 5: a signed head says otherwise"),
        "{error}"
    );
}

#[tokio::test]
async fn a_line_that_a_crash_cut_short_is_taken_away_and_that_is_written_down() {
    let (_folder, dir) = written(3).await;
    let path = only_file(&dir);
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"number\":4,\"at_").unwrap();
    assert_eq!(verify(&dir, &[]).unwrap().torn_bytes, 16);
    let audit = Audit::open(&dir, "ca1", None).unwrap();
    audit.record(vec![act(4)]).await.unwrap();
    assert_eq!(verify(&dir, &[]).unwrap().entries, 5);
    let mut acts = Vec::new();
    read(&dir, &Filter::default(), |record| {
        acts.push(record.act);
        true
    })
    .unwrap();
    assert_eq!(acts[3], "audit.repair");
}

#[tokio::test]
async fn a_log_whose_last_line_was_changed_is_not_continued() {
    let (_folder, dir) = written(3).await;
    rewrite(&dir, |mut lines| {
        lines[2] = lines[2].replace("uid:0", "uid:1");
        lines
    });
    let error = Audit::open(&dir, "ca1", None).unwrap_err().to_string();
    assert!(error.contains("its last line"), "{error}");
}

#[tokio::test]
async fn acts_of_many_at_once_all_stand_in_one_chain() {
    let (_folder, dir) = written(0).await;
    let audit = Audit::open(&dir, "ca1", None).unwrap();
    let tasks = (0..50).map(|n| {
        let audit = audit.clone();
        tokio::spawn(async move { audit.record(vec![act(n), act(n)]).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    assert_eq!(verify(&dir, &[audit.position()]).unwrap().entries, 100);
}

#[tokio::test]
async fn syslog_gets_every_line_and_a_missing_collector_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let dir = folder.path().join("audit");
    let audit = Audit::open(&dir, "ca1", Some(path.clone())).unwrap();
    audit.record(vec![act(0)]).await.unwrap();
    let collector = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    audit.record(vec![act(1)]).await.unwrap();
    let mut message = [0; 4096];
    let length = collector.recv(&mut message).unwrap();
    let message = std::str::from_utf8(&message[..length]).unwrap();
    assert!(message.starts_with("<109>1 20"), "{message}");
    assert!(
        message.contains(" handfast-ca ") && message.contains("/w1"),
        "{message}"
    );
}
