//! The scripts of `tests/conformance`, with clients from PyPI.
//!
//! `scripts/setup.sh test` installs them. Where PyPI is out of reach it says so in a file, and these tests are
//! skipped with that reason.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// The interpreter with the clients; none, and why, if it could not be installed.
fn python() -> Result<PathBuf, String> {
    let home = std::env::var_os("HOME").expect("a home folder");
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| Path::new(&home).join(".cache"), PathBuf::from);
    let folder = cache.join("handfast/python");
    if let Ok(reason) = std::fs::read_to_string(folder.join("unreachable")) {
        return Err(reason.trim().to_owned());
    }
    let python = folder.join("venv/bin/python");
    assert!(
        python.exists(),
        "run scripts/setup.sh test: {} is missing",
        python.display()
    );
    Ok(python)
}

/// A script of `tests/conformance`, spoken with line by line.
pub struct Script {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Script {
    pub fn start(test: &str, name: &str, arguments: &[&str]) -> Option<Self> {
        let python = match python() {
            Ok(python) => python,
            Err(reason) => {
                eprintln!("skipped: {test}: {reason}");
                return None;
            }
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance");
        let mut child = Command::new(python)
            .arg(script.join(name))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Some(Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        })
    }

    /// What it says next. It ends with an error on its own standard error if something is wrong.
    pub async fn hear(&mut self) -> Value {
        let line = tokio::task::block_in_place(|| {
            let mut line = String::new();
            self.output.read_line(&mut line).unwrap();
            line
        });
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the script ended early: {line:?}"))
    }

    pub fn tell(&mut self, word: &str) {
        writeln!(self.input, "{word}").unwrap();
    }

    pub fn finish(mut self) {
        drop(self.input);
        assert!(self.child.wait().unwrap().success());
    }
}
