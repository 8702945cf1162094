//! Where the plugin stands in a node's CNI configuration: behind the others of the list that the runtime uses.
//!
//! Written anew as a whole and renamed, so that a runtime never reads half of it; everything that is not ours stays as
//! it was. A CNI that writes its list anew takes the plugin out with it, so the agent looks again and again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::files::{self, FileError};

/// The plugin's `type`, which is the name of its program.
pub const PLUGIN: &str = "handfast-cni";

/// A list with more bytes is not read.
const MAX_LIST: u64 = 1 << 20;

/// What installing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The plugin stands in the list now.
    Added,
    /// It stood there already, as it should.
    Unchanged,
}

/// Puts the plugin at the end of the list that the runtime uses: the first by name in `folder`.
///
/// # Errors
/// There is no list, it is not one, or the disk refuses; nothing was changed.
pub fn install(folder: &Path, admin_socket: &Path) -> Result<(PathBuf, Installed), FileError> {
    let path = in_use(folder)?;
    let mut list = read(&path)?;
    let wanted = json!({ "type": PLUGIN, "adminSocket": admin_socket });
    let plugins = plugins(&path, &mut list)?;
    let standing: Vec<usize> = places(plugins);
    if let [only] = standing.as_slice()
        && *only + 1 == plugins.len()
        && plugins.last().and_then(|plugin| plugin.get("adminSocket")) == wanted.get("adminSocket")
    {
        return Ok((path, Installed::Unchanged));
    }
    // What an administrator has set for it stays.
    let mut ours = standing
        .first()
        .and_then(|at| plugins.get(*at).cloned())
        .unwrap_or_else(|| json!({}));
    if let (Some(ours), Some(wanted)) = (ours.as_object_mut(), wanted.as_object()) {
        ours.extend(wanted.clone());
    }
    plugins.retain(|plugin| !is_ours(plugin));
    plugins.push(ours);
    write(&path, &list)?;
    Ok((path, Installed::Added))
}

/// Takes the plugin out of every list in `folder`; returns those that it stood in.
///
/// # Errors
/// A list cannot be read or written; those before it are done.
pub fn remove(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut changed = Vec::new();
    if !folder.exists() {
        return Ok(changed);
    }
    for path in lists(folder)? {
        // Another plugin's configuration need not be a list.
        let Ok(mut list) = read(&path) else { continue };
        let Ok(plugins) = plugins(&path, &mut list) else {
            continue;
        };
        if places(plugins).is_empty() {
            continue;
        }
        plugins.retain(|plugin| !is_ours(plugin));
        write(&path, &list)?;
        changed.push(path);
    }
    Ok(changed)
}

/// The list that runtimes take: the first by name that is one.
fn in_use(folder: &Path) -> Result<PathBuf, FileError> {
    let first = lists(folder)?.into_iter().next();
    let none = || {
        content(
            folder,
            "there is no CNI configuration (*.conflist): install a CNI first",
        )
    };
    let first = first.ok_or_else(none)?;
    if first
        .extension()
        .is_some_and(|extension| extension == "conflist")
    {
        return Ok(first);
    }
    Err(content(
        &first,
        "the runtime uses this single plugin; make it a list (NAME.conflist with \"plugins\": [...]) that another can be chained to",
    ))
}

/// Files that runtimes look at, by name.
fn lists(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let cannot = |source| FileError::Io {
        doing: "read the folder",
        path: folder.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("conflist" | "conf" | "json")) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<Value, FileError> {
    let cannot = |source| FileError::Io {
        doing: "read",
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(cannot)?.len() > MAX_LIST {
        return Err(content(path, "it is too long"));
    }
    files::read_json(path)?.ok_or_else(|| content(path, "it went while it was looked at"))
}

fn plugins<'a>(path: &Path, list: &'a mut Value) -> Result<&'a mut Vec<Value>, FileError> {
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut);
    plugins.ok_or_else(|| content(path, "it has no list of plugins"))
}

fn places(plugins: &[Value]) -> Vec<usize> {
    let places = plugins.iter().enumerate();
    let ours = places.filter(|(_, plugin)| is_ours(plugin));
    ours.map(|(place, _)| place).collect()
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

/// In one step, and as readable as it was.
fn write(path: &Path, list: &Value) -> Result<(), FileError> {
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777);
    files::write_json(path, list)?;
    if let Ok(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|source| {
            FileError::Io {
                doing: "set the mode of",
                path: path.to_owned(),
                source,
            }
        })?;
    }
    Ok(())
}

fn content(path: &Path, message: &str) -> FileError {
    FileError::Content {
        path: path.to_owned(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[
        {"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;

    fn types(path: &Path) -> Vec<String> {
        let list: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let plugins = list["plugins"].as_array().unwrap().clone();
        plugins
            .iter()
            .map(|plugin| plugin["type"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn the_plugin_stands_last_in_the_first_list_and_goes_without_a_trace() {
        let folder = tempfile::tempdir().unwrap();
        let first = folder.path().join("05-pods.conflist");
        fs::write(&first, BRIDGE).unwrap();
        fs::write(folder.path().join("10-other.conflist"), BRIDGE).unwrap();
        let before: Value = serde_json::from_str(BRIDGE).unwrap();
        let socket = Path::new("/run/handfast/admin.sock");
        let (path, outcome) = install(folder.path(), socket).unwrap();
        assert_eq!(
            (path.as_path(), outcome),
            (first.as_path(), Installed::Added)
        );
        assert_eq!(types(&first), ["bridge", "portmap", PLUGIN]);
        assert_eq!(
            install(folder.path(), socket).unwrap().1,
            Installed::Unchanged
        );
        let elsewhere = Path::new("/elsewhere.sock");
        assert_eq!(
            install(folder.path(), elsewhere).unwrap().1,
            Installed::Added
        );
        assert_eq!(types(&first), ["bridge", "portmap", PLUGIN]);
        assert_eq!(remove(folder.path()).unwrap(), std::slice::from_ref(&first));
        let after: Value = serde_json::from_slice(&fs::read(&first).unwrap()).unwrap();
        assert_eq!(after, before);
        assert!(remove(folder.path()).unwrap().is_empty());
        assert!(remove(&folder.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn a_plugin_that_others_were_put_behind_moves_to_the_end_with_its_settings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conflist");
        let list =
            r#"{"plugins":[{"type":"handfast-cni","identityTimeoutSeconds":3},{"type":"bridge"}]}"#;
        fs::write(&path, list).unwrap();
        install(folder.path(), Path::new("/s")).unwrap();
        assert_eq!(types(&path), ["bridge", PLUGIN]);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"identityTimeoutSeconds\": 3"), "{text}");
    }

    #[test]
    fn what_is_no_list_is_left_as_it_is_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let socket = Path::new("/s");
        let none = install(folder.path(), socket).unwrap_err().to_string();
        assert!(none.contains("install a CNI first"), "{none}");
        let single = folder.path().join("10-bridge.conf");
        fs::write(&single, r#"{"type":"bridge"}"#).unwrap();
        let refused = install(folder.path(), socket).unwrap_err().to_string();
        assert!(refused.contains("make it a list"), "{refused}");
        fs::write(folder.path().join("00-bad.conflist"), "{").unwrap();
        assert!(install(folder.path(), socket).is_err());
        assert!(remove(folder.path()).unwrap().is_empty());
        assert_eq!(fs::read_to_string(&single).unwrap(), r#"{"type":"bridge"}"#);
    }
}
