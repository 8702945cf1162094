//! What a runtime tells the plugin: variables and a network configuration, both foreign until they are read here.

use std::collections::HashMap;
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::CniError;
use super::request::Pod;

/// Versions whose results this plugin can pass on: between them they differ in what it does not touch.
pub(super) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// A configuration with more bytes is not read.
const MAX_CONFIG: u64 = 1 << 20;
const MAX_ID: usize = 256;
/// The longest name of an interface (IFNAMSIZ, less the end).
const MAX_INTERFACE: usize = 15;
/// Attachments of one GC.
const MAX_VALID: usize = 10_000;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A pod starts.
    Add,
    /// A pod ends.
    Del,
    /// Is it still as ADD left it?
    Check,
    /// Would an ADD work?
    Status,
    /// Which versions?
    Version,
    /// Forget what is not listed.
    Gc,
}

impl Command {
    /// Reads `CNI_COMMAND`.
    pub(super) fn read(text: &str) -> Result<Self, CniError> {
        match text {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            "GC" => Ok(Self::Gc),
            _ => Err(CniError::environment(
                "CNI_COMMAND",
                "ADD, DEL, CHECK, STATUS, VERSION or GC",
            )),
        }
    }
}

/// One interface of one container, to a runtime.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// The runtime's name of the container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface inside.
    #[serde(rename = "ifname")]
    pub interface: String,
}

impl Attachment {
    /// Reads `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub(super) fn read(variables: &Variables) -> Result<Self, CniError> {
        let container_id = variables.needed("CNI_CONTAINERID")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let begins = container_id.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || !container_id.chars().all(plain) || container_id.len() > MAX_ID {
            return Err(CniError::environment(
                "CNI_CONTAINERID",
                "letters, digits, '_', '.' and '-', beginning with a letter or digit",
            ));
        }
        let interface = variables.needed("CNI_IFNAME")?;
        let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if interface.len() > MAX_INTERFACE
            || interface.contains(odd)
            || matches!(interface.as_str(), "." | "..")
        {
            return Err(CniError::environment(
                "CNI_IFNAME",
                "no name that an interface can have",
            ));
        }
        Ok(Self {
            container_id,
            interface,
        })
    }
}

/// The environment that a runtime gives a plugin.
#[derive(Clone, Debug, Default)]
pub struct Variables(HashMap<String, String>);

impl Variables {
    /// Those among these that concern the plugin.
    pub fn of(all: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = all.into_iter().filter(|(name, _)| name.starts_with("CNI_"));
        Self(ours.collect())
    }

    /// One that may be absent or empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    pub(super) fn needed(&self, name: &'static str) -> Result<String, CniError> {
        let value = self.get(name).map(str::to_owned);
        value.ok_or_else(|| CniError::environment(name, "it is missing"))
    }

    /// The pod's network namespace.
    pub(super) fn netns(&self) -> Result<PathBuf, CniError> {
        let path = PathBuf::from(self.needed("CNI_NETNS")?);
        if path.is_absolute() {
            return Ok(path);
        }
        Err(CniError::environment("CNI_NETNS", "no absolute path"))
    }

    /// The pod, from `CNI_ARGS`.
    pub(super) fn pod(&self, attachment: &Attachment) -> Result<Pod, CniError> {
        let arguments = self.needed("CNI_ARGS")?;
        let argument = |name: &str| {
            let found = arguments
                .split(';')
                .filter_map(|argument| argument.split_once('='))
                .find(|(key, _)| *key == name);
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            let value = found
                .map(|(_, value)| value)
                .filter(|value| (1..=253).contains(&value.len()) && value.chars().all(plain));
            value.map(str::to_owned).ok_or_else(|| {
                CniError::environment(
                    "CNI_ARGS",
                    &format!("it names no {name}: only pods of Kubernetes can be attached"),
                )
            })
        };
        Ok(Pod {
            namespace: argument("K8S_POD_NAMESPACE")?,
            name: argument("K8S_POD_NAME")?,
            uid: argument("K8S_POD_UID")?,
            attachment: Some(attachment.clone()),
        })
    }
}

/// The configuration of this plugin in a list, with what the runtime adds; what others write there is left alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// The version that the list is written for.
    #[serde(default)]
    pub cni_version: String,
    /// What the plugins before this one have made.
    pub prev_result: Option<Value>,
    /// The agent's socket.
    #[serde(default = "admin_socket")]
    pub admin_socket: PathBuf,
    /// A pod starts only when its identity is known; for so long that is waited for. With 0 it is not.
    #[serde(default = "identity_timeout")]
    pub identity_timeout_seconds: u16,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
}

fn admin_socket() -> PathBuf {
    PathBuf::from("/run/handfast/admin.sock")
}

fn identity_timeout() -> u16 {
    10
}

impl NetworkConfig {
    /// Reads standard input.
    pub(super) fn read(input: impl Read) -> Result<Self, CniError> {
        let mut bytes = Vec::new();
        input
            .take(MAX_CONFIG + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| CniError::io(format!("standard input: {error}")))?;
        if bytes.len() as u64 > MAX_CONFIG {
            return Err(CniError::decode(format!("more than {MAX_CONFIG} bytes")));
        }
        let config: Self =
            serde_json::from_slice(&bytes).map_err(|error| CniError::decode(error.to_string()))?;
        if VERSIONS.contains(&config.cni_version.as_str()) {
            Ok(config)
        } else {
            Err(CniError::version(&config.cni_version, &VERSIONS))
        }
    }

    pub(super) fn identity_timeout(&self) -> Duration {
        Duration::from_secs(self.identity_timeout_seconds.into())
    }

    /// The result of the plugins before.
    pub(super) fn previous(&self) -> Result<&Value, CniError> {
        let result = self
            .prev_result
            .as_ref()
            .filter(|result| result.is_object());
        result.ok_or_else(|| {
            CniError::config(
                "prevResult is missing: this plugin stands in a list behind one that makes the pod's interface",
            )
        })
    }

    /// The addresses that the plugins before gave to the pod.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>, CniError> {
        let bad = |what: &str| CniError::config(format!("prevResult: {what}"));
        let ips = match self.previous()?.get("ips") {
            None => return Err(bad("it gives the pod no address (ips)")),
            Some(ips) => ips.as_array().ok_or_else(|| bad("ips is no list"))?,
        };
        let addresses = ips.iter().map(|ip| {
            let text = ip
                .get("address")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let (address, _) = text.split_once('/').unwrap_or((text, ""));
            let address = address.parse::<IpAddr>();
            address.map_err(|_| bad("ips holds no address, such as 10.1.0.5/24"))
        });
        let addresses: Vec<IpAddr> = addresses.collect::<Result<_, _>>()?;
        if addresses.is_empty() {
            return Err(bad("it gives the pod no address (ips)"));
        }
        Ok(addresses)
    }

    /// What is to be kept by a GC.
    pub(super) fn valid(&self) -> Result<Vec<Attachment>, CniError> {
        let valid = self.valid.clone();
        let valid = valid.ok_or_else(|| {
            CniError::config("cni.dev/valid-attachments is missing; nothing was taken away")
        })?;
        if valid.len() > MAX_VALID {
            return Err(CniError::config(format!(
                "more than {MAX_VALID} valid attachments"
            )));
        }
        Ok(valid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Variables::of(pairs.iter().map(owned))
    }

    #[test]
    fn a_container_and_its_interface_have_names_that_lead_nowhere_else() {
        let read = |container: &str, interface: &str| {
            Attachment::read(&variables(&[
                ("CNI_CONTAINERID", container),
                ("CNI_IFNAME", interface),
            ]))
        };
        assert!(read("3f2a", "eth0").is_ok());
        for (container, interface) in [
            ("", "eth0"),
            ("../x", "eth0"),
            ("-a", "eth0"),
            ("a b", "eth0"),
            ("a", ""),
            ("a", ".."),
            ("a", "eth/0"),
            ("a", "sixteencharacter"),
        ] {
            assert_eq!(read(container, interface).unwrap_err().code, 4);
        }
    }

    #[test]
    fn a_pod_is_named_whole_or_not_at_all() {
        let attachment = Attachment {
            container_id: "c".into(),
            interface: "eth0".into(),
        };
        let pod = |arguments: &str| variables(&[("CNI_ARGS", arguments)]).pod(&attachment);
        let whole = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u-1";
        let found = pod(whole).unwrap();
        assert_eq!(
            (
                found.namespace.as_str(),
                found.name.as_str(),
                found.uid.as_str()
            ),
            ("shop", "web-1", "u-1")
        );
        let without = pod("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1").unwrap_err();
        assert!(without.details.contains("K8S_POD_UID"), "{without}");
        assert_eq!(pod("K8S_POD_UID=a/b").unwrap_err().code, 4);
    }

    #[test]
    fn versions_results_and_sizes_are_checked_before_anything_is_done() {
        let read = |text: &str| NetworkConfig::read(text.as_bytes());
        assert_eq!(read("{").unwrap_err().code, 6);
        assert_eq!(read(r#"{"cniVersion":"0.2.0"}"#).unwrap_err().code, 1);
        assert_eq!(read("{}").unwrap_err().code, 1);
        let long = format!("\"{}\"", "x".repeat(2 << 20));
        assert_eq!(read(&long).unwrap_err().code, 6);
        let addresses = |previous: &str| {
            read(&format!(
                r#"{{"cniVersion":"1.0.0","prevResult":{previous}}}"#
            ))
            .unwrap()
            .addresses()
        };
        assert_eq!(addresses("null").unwrap_err().code, 7);
        assert_eq!(addresses("{}").unwrap_err().code, 7);
        assert_eq!(addresses(r#"{"ips":[]}"#).unwrap_err().code, 7);
        assert_eq!(
            addresses(r#"{"ips":[{"address":"x"}]}"#).unwrap_err().code,
            7
        );
        let both = r#"{"ips":[{"address":"10.1.0.5/24"},{"address":"fd00::5/64"}]}"#;
        assert_eq!(addresses(both).unwrap().len(), 2);
        assert_eq!(
            read(r#"{"cniVersion":"1.1.0"}"#)
                .unwrap()
                .valid()
                .unwrap_err()
                .code,
            7
        );
    }
}
