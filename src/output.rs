//! How listings reach the user: a table for eyes, JSON or YAML for programs.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

/// A line for standard output. Unlike `println!`, a reader that went away (`head`, a closed pager) or a full disk ends no
/// work half-way: the former is nobody's fault, the latter is told at the end ([`finish`]).
macro_rules! outln {
    ($($text:tt)*) => {
        $crate::output::write(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// Why what was printed did not arrive.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// The same without the line's end.
macro_rules! out {
    ($($text:tt)*) => {
        $crate::output::write(format_args!($($text)*))
    };
}

/// Prints, unless that has failed before.
pub fn write(text: fmt::Arguments<'_>) {
    if FAILED.get().is_none() {
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
            let _ = FAILED.set(error);
        }
    }
}

/// Whether nobody reads any more, so that what prints for ever may end.
pub fn is_over() -> bool {
    FAILED.get().is_some()
}

/// To be asked at the end: did everything that was printed get where it was to go?
pub fn finish() -> anyhow::Result<()> {
    match FAILED.get() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow::anyhow!("{error}")).context("what was to be printed could not be written")
        }
        _ => Ok(()),
    }
}

/// The form of a listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// The `--output` option of every command that lists.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct OutputArgs {
    /// How to print: a table for eyes, json or yaml for programs
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

impl OutputArgs {
    /// Whether a program is to read it: it gets the whole form even of nothing.
    pub fn is_for_programs(self) -> bool {
        self.output != Format::Table
    }

    /// Prints `rows` as a table with `header`, or `value` whole as JSON or YAML.
    pub fn print<T: Serialize>(
        self,
        value: &T,
        header: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> anyhow::Result<()> {
        match self.output {
            Format::Table => outln!("{}", table(header, rows)),
            Format::Json => outln!("{}", serde_json::to_string_pretty(value)?),
            Format::Yaml => out!("{}", serde_norway::to_string(value)?),
        }
        Ok(())
    }
}

/// Aligned columns without borders, as `kubectl` and `ip` users expect.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut builder = Builder::default();
    builder.push_record(header.iter().copied());
    for row in rows {
        builder.push_record(row);
    }
    let mut table = builder.build();
    table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
    table
        .to_string()
        .lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Seconds since 1970 as people and programs read time: RFC 3339, UTC.
pub fn timestamp(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| {
            time.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_else(|| seconds.to_string())
}

/// The same with milliseconds.
pub fn timestamp_ms(seconds: f64) -> String {
    let whole = seconds.max(0.0);
    let text = timestamp(whole as u64);
    format!(
        "{}.{:03}Z",
        text.trim_end_matches('Z'),
        (whole.fract() * 1000.0) as u32
    )
}
