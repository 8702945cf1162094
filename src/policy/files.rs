//! Files and folders of policies, read with a bound on their size.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use handfast_policies::{ReadError, Source};

/// One byte more than a policy may have, so that the reader sees that it is too long.
const MAX_BYTES: u64 = (1 << 20) + 1;

/// Every file that the paths name, and what is not even text in them.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<(Vec<Source>, Vec<ReadError>)> {
    let mut sources = Vec::new();
    let mut errors = Vec::new();
    for path in paths {
        for file in expand(path)? {
            let name = if is_stdin(&file) {
                "stdin".to_owned()
            } else {
                file.display().to_string()
            };
            let bytes =
                bytes(&file).with_context(|| format!("cannot read {name}; nothing was changed"))?;
            match String::from_utf8(bytes) {
                Ok(text) => sources.push(Source { name, text }),
                Err(error) => errors.push(not_text(
                    name,
                    error.as_bytes(),
                    error.utf8_error().valid_up_to(),
                )),
            }
        }
    }
    Ok((sources, errors))
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// The file itself, or those of a folder in the order of their names.
fn expand(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if is_stdin(path) || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = || {
        format!(
            "cannot read the folder {}; nothing was changed",
            path.display()
        )
    };
    let mut files = Vec::new();
    for entry in path.read_dir().with_context(unreadable)? {
        let file = entry.with_context(unreadable)?.path();
        if is_policy(&file) {
            files.push(file);
        }
    }
    ensure!(
        !files.is_empty(),
        "there is no *.yaml, *.yml or *.json in {}; nothing was changed",
        path.display()
    );
    files.sort();
    Ok(files)
}

fn is_policy(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

fn bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if is_stdin(path) {
        std::io::stdin()
            .lock()
            .take(MAX_BYTES)
            .read_to_end(&mut bytes)?;
    } else {
        File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    }
    // A character cut in two at the bound is no fault of the text: it is too long, and says so.
    if bytes.len() as u64 == MAX_BYTES {
        let whole = String::from_utf8_lossy(&bytes).into_owned();
        return Ok(whole.into_bytes());
    }
    Ok(bytes)
}

fn not_text(file: String, bytes: &[u8], at: usize) -> ReadError {
    let before = String::from_utf8_lossy(bytes.get(..at).unwrap_or_default());
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    let message = "this is not UTF-8 text: save the file as UTF-8".to_owned();
    ReadError {
        file,
        line,
        column,
        field: String::new(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_its_policies_in_order_and_leaves_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", "c.json", "README.md", "d.yaml.swp"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let (sources, errors) = read(&[folder.path().to_owned()]).unwrap();
        let texts: Vec<_> = sources.iter().map(|source| source.text.as_str()).collect();
        assert_eq!(texts, ["a.yml", "b.yaml", "c.json"]);
        assert!(errors.is_empty());
    }

    #[test]
    fn what_is_no_text_is_an_error_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.yaml");
        std::fs::write(&file, b"a: 1\nb: \xff\n").unwrap();
        let (_, errors) = read(std::slice::from_ref(&file)).unwrap();
        let expected = format!(
            "{}:2:4: this is not UTF-8 text: save the file as UTF-8",
            file.display()
        );
        assert_eq!(errors[0].to_string(), expected);
    }

    #[test]
    fn a_missing_file_or_an_empty_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let missing = read(&[folder.path().join("no.yaml")]).unwrap_err();
        assert!(missing.to_string().contains("nothing was changed"));
        let empty = read(&[folder.path().to_owned()]).unwrap_err();
        assert!(empty.to_string().starts_with("there is no *.yaml"));
    }
}
