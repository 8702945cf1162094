//! Files of entries: read and written by the library, opened here.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use handfast_ca::client::admin::NewEntry;
use handfast_ca::client::{EntryForm, read_entries, write_entries};
use handfast_ca::model::Entry;

/// A file that holds more is not one of entries.
const MAX_FILE: u64 = 512 << 20;

/// The form of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Form {
    Yaml,
    Json,
}

/// Reads files, all of them or none.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<NewEntry>> {
    let mut entries = Vec::new();
    for path in paths {
        let text = content(path)?;
        let read = read_entries(&text).with_context(|| {
            format!(
                "nothing was imported: {} is not as `handfast entry export` writes it",
                path.display()
            )
        })?;
        entries.extend(read);
    }
    Ok(entries)
}

fn content(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin()
            .take(MAX_FILE + 1)
            .read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(path)
            .with_context(|| format!("nothing was imported: cannot open {}", path.display()))?;
        file.take(MAX_FILE + 1).read_to_string(&mut text)
    };
    let read =
        read.with_context(|| format!("nothing was imported: cannot read {}", path.display()))?;
    if read as u64 > MAX_FILE {
        bail!(
            "{} is larger than 512 MiB; nothing was imported",
            path.display()
        );
    }
    Ok(text)
}

/// Prints entries so that they can be read again.
pub(super) fn write(entries: &[Entry], form: Form) -> anyhow::Result<()> {
    let form = match form {
        Form::Yaml => EntryForm::Yaml,
        Form::Json => EntryForm::Json,
    };
    out!("{}", write_entries(entries, form)?);
    Ok(())
}
