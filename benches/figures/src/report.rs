//! What a figure is, and where it goes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Rounds of everything that is measured.
pub const ROUNDS: usize = 7;

/// One measured figure.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// As in SPECIFICATION.md.
    pub id: &'static str,
    /// The median of all rounds.
    pub value: f64,
    /// `ratio`, `s`, `MiB`, …
    pub unit: &'static str,
    /// What is promised.
    pub goal: String,
    /// Whether it is kept.
    pub ok: bool,
    /// How it was measured, with the spread.
    pub how: String,
    /// When (RFC 3339).
    pub at: String,
}

/// Which side of the goal is good.
#[derive(Clone, Copy)]
pub enum Goal {
    /// No less than this.
    AtLeast(f64),
    /// No more than this.
    AtMost(f64),
    /// Whatever it is.
    None,
}

/// The median of the rounds against the goal.
pub fn figure(
    id: &'static str,
    unit: &'static str,
    goal: Goal,
    mut rounds: Vec<f64>,
    how: &str,
) -> Result<Figure> {
    rounds.sort_by(f64::total_cmp);
    let value = *rounds
        .get(rounds.len() / 2)
        .context("no round was measured")?;
    let (least, most) = (
        rounds.first().unwrap_or(&value),
        rounds.last().unwrap_or(&value),
    );
    let spread = format!("{how}; {} rounds, {least:.3} to {most:.3}", rounds.len());
    let (goal, ok) = match goal {
        Goal::AtLeast(goal) => (format!("≥ {goal}"), value >= goal),
        Goal::AtMost(goal) => (format!("≤ {goal}"), value <= goal),
        Goal::None => ("reported".to_owned(), true),
    };
    // At once: what comes after it may take minutes, or fail.
    eprintln!("{id}: {value:.3} {unit} (goal {goal})");
    let at = OffsetDateTime::now_utc().format(&Rfc3339)?;
    Ok(Figure {
        id,
        value,
        unit,
        goal,
        ok,
        how: spread,
        at,
    })
}

/// Writes `bench/results.json` below the target directory.
pub fn write(figures: &[Figure]) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let folder = PathBuf::from(target).join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join("results.json");
    fs::write(&path, serde_json::to_string_pretty(figures)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Prints them as a table.
pub fn print(figures: &[Figure]) {
    for figure in figures {
        let state = if figure.ok { "ok" } else { "MISSED" };
        println!(
            "{:<24} {:>10.3} {:<6} goal {:<8} {state:<7} {}",
            figure.id, figure.value, figure.unit, figure.goal, figure.how
        );
    }
}

/// Processor time of this thread while `work` runs.
pub fn cpu<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let start = now()?;
    let result = work()?;
    Ok((now()?.saturating_sub(start), result))
}

/// Resident memory of this process, in MiB.
pub fn resident_mib() -> Result<f64> {
    resident_mib_of("self")
}

/// Resident memory of a process, in MiB.
pub fn resident_mib_of(process: &str) -> Result<f64> {
    mib_of(process, "VmRSS:")
}

/// The same without pages of files, which processes share and the kernel may drop (proc(5)).
pub fn own_mib_of(process: &str) -> Result<f64> {
    mib_of(process, "RssAnon:")
}

fn mib_of(process: &str, what: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: f64 = kib
        .with_context(|| format!("no {what} in /proc/{process}/status"))?
        .parse()?;
    Ok(kib / 1024.0)
}
