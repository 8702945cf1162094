//! How listings reach the user: a table for eyes, JSON or YAML for programs.

use clap::{Args, ValueEnum};
use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

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
    /// Prints `rows` as a table with `header`, or `value` whole as JSON or YAML.
    pub fn print<T: Serialize>(
        self,
        value: &T,
        header: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> anyhow::Result<()> {
        match self.output {
            Format::Table => println!("{}", table(header, rows)),
            Format::Json => println!("{}", serde_json::to_string_pretty(value)?),
            Format::Yaml => print!("{}", serde_norway::to_string(value)?),
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
