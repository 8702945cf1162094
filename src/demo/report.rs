//! What the demonstration says: progress while it runs, and the result as a table or as JSON.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tabled::settings::object::Columns;
use tabled::settings::{Modify, Style, Width};

/// How one step went.
#[derive(Clone, Debug, Serialize)]
pub struct StepResult {
    /// What was shown.
    pub name: &'static str,
    /// Whether it was so.
    pub ok: bool,
    /// The facts.
    pub detail: String,
    /// How long it took.
    pub ms: u64,
}

/// The whole result: what `--json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    /// True only if every step is.
    pub ok: bool,
    /// All steps, those too that were not reached.
    pub steps: Vec<StepResult>,
}

impl Report {
    /// Judges the steps.
    pub fn new(steps: Vec<StepResult>) -> Self {
        Self {
            ok: !steps.is_empty() && steps.iter().all(|step| step.ok),
            steps,
        }
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut table = tabled::builder::Builder::default();
        table.push_record(["", "step", "what was measured", "ms"]);
        for step in &self.steps {
            let mark = if step.ok { "ok" } else { "FAILED" };
            table.push_record([mark, step.name, &step.detail, &step.ms.to_string()]);
        }
        table
            .build()
            .with(Style::rounded())
            .with(Modify::new(Columns::new(1..2)).with(Width::wrap(30).keep_words(true)))
            .with(Modify::new(Columns::new(2..3)).with(Width::wrap(78).keep_words(true)))
            .to_string()
    }
}

/// Progress on standard error: a moving line on a terminal, plain lines elsewhere.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
}

impl Progress {
    /// Begins.
    pub fn start(steps: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(steps);
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} [{elapsed_precise}] {pos}/{len} {wide_msg}")
            {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            bar,
            started: Instant::now(),
        }
    }

    /// Says what is being done.
    pub fn doing(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("[{:5.1} s] {what}", self.started.elapsed().as_secs_f64()),
        }
    }

    /// Says how a step went.
    pub fn done(&self, step: &StepResult) {
        let mark = if step.ok { "ok    " } else { "FAILED" };
        match &self.bar {
            Some(bar) => {
                bar.println(format!("{mark} {}: {}", step.name, step.detail));
                bar.inc(1);
            }
            None => eprintln!(
                "[{:5.1} s] {mark} {}: {}",
                self.started.elapsed().as_secs_f64(),
                step.name,
                step.detail
            ),
        }
    }

    /// Takes the moving line away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(ok: bool) -> StepResult {
        StepResult {
            name: "a step",
            ok,
            detail: "what was seen".into(),
            ms: 7,
        }
    }

    #[test]
    fn one_failed_step_fails_the_whole_and_so_does_no_step_at_all() {
        assert!(Report::new(vec![step(true)]).ok);
        assert!(!Report::new(vec![step(true), step(false)]).ok);
        assert!(!Report::new(Vec::new()).ok);
    }

    #[test]
    fn json_has_exactly_the_documented_fields() {
        let json = serde_json::to_value(Report::new(vec![step(true)])).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "ok": true,
                "steps": [{"name": "a step", "ok": true, "detail": "what was seen", "ms": 7}]
            })
        );
    }
}
