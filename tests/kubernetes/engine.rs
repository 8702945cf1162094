//! Containers as a kubelet has them made of a pod's specification, by `runc`: arguments, environment, mounts, capabilities
//! and namespaces are the manifest's own.
//!
//! Their image is this machine's own `/usr`, with the program under test where the Dockerfile puts it. What they do not have
//! of a kubelet's is the seccomp profile.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::lab::{Lab, MARK};
use crate::harness::process::tool;
use crate::harness::wait;
use crate::support::{SOON, binary};

/// What a privileged container has, by the kernel's numbers: of these, what this machine has.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A node's kubelet, as far as containers go.
pub struct Engine<'a> {
    lab: &'a Lab,
    /// The node's network, which all of handfast's pods share.
    network: PathBuf,
    folder: PathBuf,
    /// Where a volume of the manifest is here, by its name.
    pub volumes: BTreeMap<String, PathBuf>,
    /// What the API server says of the pod and its node.
    pub fields: BTreeMap<&'static str, String>,
    /// Lines of the pods' `/etc/hosts`.
    pub hosts: String,
    /// What a pod's service account shows the API server, and where that is: mounted unless the pod says otherwise.
    pub account: Option<(PathBuf, SocketAddr)>,
}

/// Where pods find it.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A container that runs.
pub struct Container {
    id: String,
    root: PathBuf,
    child: Child,
    log: PathBuf,
}

/// Those that this process could have.
fn all_capabilities() -> anyhow::Result<Vec<&'static str>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let bounds = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bounds = u64::from_str_radix(bounds.context("no CapBnd")?.trim(), 16)?;
    let all = ALL.into_iter().enumerate();
    Ok(all
        .filter(|(number, _)| bounds >> number & 1 == 1)
        .map(|(_, name)| name)
        .collect())
}

/// Is there a runtime?
pub fn missing() -> Option<String> {
    let found = Command::new("runc")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    match found {
        Ok(status) if status.success() => None,
        _ => Some("no runc (scripts/setup.sh test installs it)".to_owned()),
    }
}

impl<'a> Engine<'a> {
    pub fn new(lab: &'a Lab, network: &str, folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self {
            lab,
            network: Path::new("/run/netns").join(network),
            folder: folder.to_owned(),
            volumes: BTreeMap::new(),
            fields: BTreeMap::new(),
            hosts: String::new(),
            account: None,
        })
    }

    /// A volume that lies on the host, made as a kubelet makes it where there is none: open to be read by all.
    pub fn host_path(&mut self, name: &str, path: &Path) -> anyhow::Result<()> {
        if !path.exists() {
            std::fs::create_dir_all(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        }
        self.volumes.insert(name.to_owned(), path.to_owned());
        Ok(())
    }

    /// Starts a container of a pod, with what `change` makes of its arguments.
    pub fn start(
        &self,
        pod: &Value,
        container: &Value,
        change: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Container> {
        let name = container["name"].as_str().context("no name")?;
        let id = format!("{}-{name}", self.lab.name());
        let bundle = self.folder.join(name);
        let config = self.config(pod, container, &bundle, change)?;
        std::fs::write(bundle.join("config.json"), config.to_string())?;
        let log = bundle.join("log");
        let file = std::fs::File::create(&log)?;
        let root = self.folder.join("runc");
        let child = Command::new("runc")
            .arg("--root")
            .arg(&root)
            .args(["run", "--bundle"])
            .arg(&bundle)
            .arg(&id)
            .env(MARK, self.lab.name())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("start runc")?;
        Ok(Container {
            id,
            root,
            child,
            log,
        })
    }

    fn config(
        &self,
        pod: &Value,
        container: &Value,
        bundle: &Path,
        change: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Value> {
        let image = bundle.join("rootfs");
        for folder in [
            "usr", "etc", "proc", "sys", "dev", "tmp", "run", "var/lib", "host",
        ] {
            std::fs::create_dir_all(image.join(folder))?;
        }
        for (link, to) in [
            ("bin", "usr/bin"),
            ("sbin", "usr/sbin"),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
        ] {
            let _ = std::fs::remove_file(image.join(link));
            symlink(to, image.join(link))?;
        }
        let _ = std::fs::remove_file(image.join("var/run"));
        symlink("../run", image.join("var/run"))?;
        for file in ["ld.so.cache", "passwd", "group", "nsswitch.conf"] {
            std::fs::copy(Path::new("/etc").join(file), image.join("etc").join(file))?;
        }
        std::fs::write(
            bundle.join("hosts"),
            format!("127.0.0.1 localhost\n{}", self.hosts),
        )?;

        let security = &container["securityContext"];
        let privileged = security["privileged"] == true;
        let capabilities = match (privileged, &security["capabilities"]["drop"][0]) {
            (true, _) => all_capabilities()?,
            (false, dropped) => {
                ensure!(dropped == "ALL", "{container}: not asked for here");
                Vec::new()
            }
        };
        let mut environment = vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            format!("{MARK}={}", self.lab.name()),
        ];
        let account = self.account.as_ref();
        let account = account.filter(|_| pod["automountServiceAccountToken"] != false);
        if let Some((_, server)) = account {
            environment.push(format!("KUBERNETES_SERVICE_HOST={}", server.ip()));
            environment.push(format!("KUBERNETES_SERVICE_PORT={}", server.port()));
        }
        let mut known = BTreeMap::new();
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().context("no name")?;
            let field = variable["valueFrom"]["fieldRef"]["fieldPath"]
                .as_str()
                .context("no field")?;
            let value = self
                .fields
                .get(field)
                .with_context(|| format!("nobody says {field}"))?;
            environment.push(format!("{name}={value}"));
            known.insert(format!("$({name})"), value);
        }
        let words = |what: &str| container[what].as_array().cloned().unwrap_or_default();
        let mut arguments: Vec<String> = match container.get("command") {
            Some(_) => Vec::new(),
            None => vec!["/usr/local/bin/handfast".to_owned()],
        };
        for word in words("command").into_iter().chain(words("args")) {
            let mut word = word.as_str().context("no word")?.to_owned();
            for (name, value) in &known {
                word = word.replace(name, value);
            }
            arguments.push(change(&word).unwrap_or(word));
        }
        // Of the node: the network of this test's node, not of this machine.
        ensure!(
            pod["hostNetwork"] == true,
            "a pod with a network of its own"
        );
        let mut namespaces = vec![
            json!({"type": "mount"}),
            json!({"type": "ipc"}),
            json!({"type": "uts"}),
            json!({"type": "network", "path": self.network}),
        ];
        if pod["hostPID"] != true {
            namespaces.push(json!({"type": "pid"}));
        }
        Ok(json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": arguments, "env": environment,
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                },
                "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
            },
            "root": {"path": image, "readonly": security["readOnlyRootFilesystem"] == true},
            "mounts": self.mounts(container, bundle, privileged, account.map(|(folder, _)| folder))?,
            "linux": {
                "namespaces": namespaces,
                "resources": {"devices": [{"allow": privileged, "access": "rwm"}]},
                "cgroupsPath": format!("/{}", self.lab.name()),
            },
        }))
    }

    fn mounts(
        &self,
        container: &Value,
        bundle: &Path,
        privileged: bool,
        account: Option<&PathBuf>,
    ) -> anyhow::Result<Vec<Value>> {
        let bind = |from: &Path, to: &str, options: &[&str]| {
            let options = [&["rbind"], options].concat();
            json!({"source": from, "destination": to, "type": "bind", "options": options})
        };
        let mut mounts = vec![
            json!({"source": "proc", "destination": "/proc", "type": "proc"}),
            json!({"source": "sysfs", "destination": "/sys", "type": "sysfs", "options": if privileged { ["rw"] } else { ["ro"] }}),
            bind(Path::new("/usr"), "/usr", &["ro"]),
            bind(&bundle.join("hosts"), "/etc/hosts", &[]),
            json!({"source": "tmpfs", "destination": "/usr/local/bin", "type": "tmpfs"}),
            bind(binary(), "/usr/local/bin/handfast", &["ro"]),
        ];
        mounts.push(match privileged {
            // A privileged container has the host's devices.
            true => bind(Path::new("/dev"), "/dev", &[]),
            false => json!({"source": "tmpfs", "destination": "/dev", "type": "tmpfs"}),
        });
        mounts.extend(account.map(|folder| bind(folder, ACCOUNT, &["ro"])));
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let name = mount["name"].as_str().context("no name")?;
            let to = mount["mountPath"].as_str().context("no path")?;
            let from = self
                .volumes
                .get(name)
                .with_context(|| format!("no volume {name}"))?;
            let access = if mount["readOnly"] == true {
                "ro"
            } else {
                "rw"
            };
            let propagation = match mount["mountPropagation"].as_str() {
                Some("Bidirectional") => "rshared",
                Some("HostToContainer") => "rslave",
                _ => "rprivate",
            };
            mounts.push(bind(from, to, &[access, propagation]));
        }
        Ok(mounts)
    }
}

impl Container {
    /// What it has said.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for its good end.
    pub fn end(mut self) -> anyhow::Result<String> {
        let id = self.id.clone();
        let status = wait::until(&format!("the end of {id}"), SOON, || {
            Ok(self.child.try_wait()?)
        })
        .with_context(|| self.output())?;
        ensure!(status.success(), "{id}: {status}: {}", self.output());
        Ok(self.output())
    }

    /// Whether it runs still.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Runs a command inside, as a probe does: whether it went well.
    pub fn exec(&self, words: &[&str]) -> bool {
        let root = self.root.display().to_string();
        let all = [&["--root", &root, "exec", &self.id], words].concat();
        tool("runc", &all).is_ok()
    }

    /// Ends it as a kubelet does, and waits until it is gone.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let root = self.root.display().to_string();
        tool("runc", &["--root", &root, "kill", &self.id, "TERM"])?;
        let id = self.id.clone();
        wait::until(&format!("{id} to be gone"), SOON, || {
            Ok((!self.running()).then_some(()))
        })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let root = self.root.display().to_string();
        // It may have ended by itself.
        let _ = tool("runc", &["--root", &root, "delete", "--force", &self.id]);
        let _ = self.child.wait();
    }
}
