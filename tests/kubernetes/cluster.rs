//! The API server in the lab, and what an administrator, a controller or a scheduler would say to it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::lab::{Host, Lab};
use crate::harness::process::{Place, command};
use crate::harness::wait;
use crate::support::{SOON, repository};

/// Where handfast's own objects are.
pub const SYSTEM: &str = "handfast-system";
const START: Duration = Duration::from_secs(90);
/// Its port on the loopback of the authority's host.
pub const PORT: u16 = 16443;
const SERVER: &str = "https://127.0.0.1:16443";
const ETCD: &str = "http://127.0.0.1:12379";

/// The folder with the API server's binaries, or why there is none.
pub fn binaries() -> Result<PathBuf, String> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let folder = cache.or(home).unwrap_or_default().join("handfast/kube");
    let there = |name: &str| folder.join(name).is_file();
    if there("kube-apiserver") && there("etcd") {
        return Ok(folder);
    }
    Err(format!(
        "no kube-apiserver in {} (scripts/setup.sh kubernetes builds it, once, in about 6 minutes)",
        folder.display()
    ))
}

/// A cluster without nodes of its own, on the loopback of the authority's host.
pub struct Cluster {
    place: Place,
    binaries: PathBuf,
    run: PathBuf,
}

impl Cluster {
    /// Starts it, with handfast's definitions and roles.
    pub fn start(lab: &Lab, host: &Host, binaries: PathBuf) -> anyhow::Result<Self> {
        let cluster = Self {
            run: host.dir.join("kube"),
            place: Place::new(lab, &host.ns, None)?,
            binaries,
        };
        cluster.up()?;
        cluster.create(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM},
        }))?;
        let roles = std::fs::read_to_string(repository("deploy/kubernetes/rbac.yaml"))?;
        for document in serde_norway::Deserializer::from_str(&roles) {
            cluster.create(&Value::deserialize(document)?)?;
        }
        Ok(cluster)
    }

    /// Starts the API server, again after it was stopped.
    pub fn up(&self) -> anyhow::Result<()> {
        self.up_with(&[])
    }

    /// The same with more flags of its own.
    pub fn up_with(&self, flags: &[&str]) -> anyhow::Result<()> {
        let mut start = command(repository("scripts/kube-apiserver.sh"), &["start"]);
        start.arg(&self.binaries).arg(&self.run).args(flags);
        self.place
            .run(&mut start, START)?
            .success("kube-apiserver.sh start")
            .map(drop)
    }

    /// Stops it; what it knows is kept.
    pub fn down(&self) -> anyhow::Result<()> {
        let words = ["stop".into(), self.run.clone()];
        let mut stop = command(repository("scripts/kube-apiserver.sh"), &words);
        self.place
            .run(&mut stop, SOON)?
            .success("kube-apiserver.sh stop")
            .map(drop)
    }

    /// Lets etcd forget all that was before now: a watch that asks for it comes too late (410).
    pub fn compact(&self) -> anyhow::Result<()> {
        let now = self.etcd("range", &json!({"key": "AA=="}))?;
        let revision = now["header"]["revision"].as_str().context("no revision")?;
        let forget = json!({"revision": revision, "physical": true});
        self.etcd("compaction", &forget).map(drop)
    }

    fn etcd(&self, what: &str, body: &Value) -> anyhow::Result<Value> {
        let mut curl = command("curl", &["-sS", "--fail", "--noproxy", "*", "-m", "10"]);
        curl.args(["--data-binary", &body.to_string()])
            .arg(format!("{ETCD}/v3/kv/{what}"));
        let said = self.place.run(&mut curl, SOON)?.success("curl")?;
        Ok(serde_json::from_str(&said.stdout)?)
    }

    /// Asks as the administrator; the status and what was said.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        let pki = self.run.join("pki");
        let of = |name: &str| pki.join(name).display().to_string();
        let kind = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let mut curl = command("curl", &["-sS", "--noproxy", "*", "-m", "10", "-X", method]);
        curl.args([
            "--cacert",
            &of("ca.crt"),
            "--cert",
            &of("admin.crt"),
            "--key",
            &of("admin.key"),
        ])
        .args([
            "-H",
            &format!("Content-Type: {kind}"),
            "-w",
            "\n%{http_code}",
        ]);
        if let Some(body) = body {
            curl.args(["--data-binary", &body.to_string()]);
        }
        curl.arg(format!("{SERVER}{path}"));
        let said = self.place.run(&mut curl, SOON)?.success("curl")?;
        let (text, code) = said.stdout.rsplit_once('\n').context("no status")?;
        Ok((
            code.parse()?,
            serde_json::from_str(text).unwrap_or(Value::Null),
        ))
    }

    fn done(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (code, said) = self.ask(method, path, body)?;
        ensure!((200..300).contains(&code), "{method} {path}: {code} {said}");
        Ok(said)
    }

    /// Makes an object.
    pub fn create(&self, object: &Value) -> anyhow::Result<Value> {
        self.done("POST", &collection(object)?, Some(object))
    }

    /// Makes many objects of one kind and namespace, by one program that sends them side by side.
    #[allow(dead_code, reason = "for the figures")]
    pub fn create_all(&self, objects: &[Value]) -> anyhow::Result<()> {
        let Some(first) = objects.first() else {
            return Ok(());
        };
        let url = format!("{SERVER}{}", collection(first)?);
        let of = |name: &str| self.run.join("pki").join(name).display().to_string();
        let bodies = self.run.join("bodies");
        std::fs::create_dir_all(&bodies)?;
        let mut orders = Vec::new();
        for (number, object) in objects.iter().enumerate() {
            let body = bodies.join(number.to_string());
            std::fs::write(&body, object.to_string())?;
            orders.push(format!(
                "url = \"{url}\"\ndata-binary = \"@{}\"\nheader = \"Content-Type: application/json\"\ncacert = \"{}\"\n\
                 cert = \"{}\"\nkey = \"{}\"\nfail\noutput = \"/dev/null\"\nnoproxy = \"*\"\n",
                body.display(),
                of("ca.crt"),
                of("admin.crt"),
                of("admin.key"),
            ));
        }
        let config = self.run.join("bodies.conf");
        std::fs::write(&config, orders.join("next\n"))?;
        let mut curl = command(
            "curl",
            &["-sS", "--parallel", "--parallel-max", "20", "--config"],
        );
        curl.arg(&config);
        self.place.run(&mut curl, START)?.success("curl").map(drop)
    }

    /// Reads an object.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.done("GET", path, None)
    }

    /// Changes an object by a merge patch.
    pub fn patch(&self, path: &str, patch: &Value) -> anyhow::Result<Value> {
        self.done("PATCH", path, Some(patch))
    }

    /// Ends an object at once.
    pub fn delete(&self, path: &str) -> anyhow::Result<()> {
        let now = json!({"gracePeriodSeconds": 0});
        self.done("DELETE", path, Some(&now)).map(drop)
    }

    /// A token of a service account, for an audience, bound to a pod if one is named.
    pub fn token(
        &self,
        account: &str,
        audience: Option<&str>,
        pod: Option<(&str, &str)>,
    ) -> anyhow::Result<String> {
        let bound = pod.map(
            |(name, uid)| json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}),
        );
        let audience = audience.unwrap_or("https://kubernetes.default.svc");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [audience], "boundObjectRef": bound},
        });
        let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/{account}/token");
        let made = self.done("POST", &path, Some(&request))?;
        let token = made["status"]["token"].as_str();
        token.map(str::to_owned).context("no token")
    }

    /// A kubeconfig with the rights of a service account.
    pub fn kubeconfig(&self, account: &str) -> anyhow::Result<PathBuf> {
        let path = self.run.join(format!("{account}.kubeconfig"));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": SERVER, "certificate-authority": self.run.join("pki/ca.crt"),
            }}],
            "users": [{"name": "c", "user": {"token": self.token(account, None, None)?}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// A node as a kubelet registers it, and a controller gives it prefixes.
    pub fn node(
        &self,
        name: &str,
        prefixes: &[String],
        addresses: &[String],
    ) -> anyhow::Result<()> {
        self.create(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDR": prefixes.first(), "podCIDRs": prefixes},
        }))?;
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        self.patch(
            &format!("/api/v1/nodes/{name}/status"),
            &json!({"status": {"addresses": addresses}}),
        )
        .map(drop)
    }

    /// A pod on a node, as a scheduler leaves it; its UID.
    pub fn pod(
        &self,
        namespace: &str,
        name: &str,
        node: &str,
        account: &str,
        labels: &[(&str, &str)],
    ) -> anyhow::Result<String> {
        let labels: serde_json::Map<String, Value> = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        let made = self.create(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {
                "nodeName": node, "serviceAccountName": account,
                "containers": [{"name": "main", "image": "none"}],
            },
        }))?;
        made["metadata"]["uid"]
            .as_str()
            .map(str::to_owned)
            .context("no UID")
    }

    /// A namespace with labels, and the service accounts in it.
    pub fn namespace(&self, name: &str, labels: &Value, accounts: &[&str]) -> anyhow::Result<()> {
        self.create(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        }))?;
        for account in accounts {
            self.create(&json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": account, "namespace": name},
            }))?;
        }
        Ok(())
    }

    /// Defines HandfastPolicy, by what the program under test prints.
    pub fn define(&self, definition: &Value) -> anyhow::Result<()> {
        self.create(definition)?;
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        wait::until("the definition to be served", SOON, || {
            let now = self.get(&path)?;
            let conditions = now["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let established = conditions.iter().any(|condition| {
                condition["type"] == "Established" && condition["status"] == "True"
            });
            Ok(established.then_some(()))
        })
    }
}

/// Where objects of its kind are made.
fn collection(object: &Value) -> anyhow::Result<String> {
    let of = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (version, kind) = (
        of("/apiVersion").unwrap_or_default(),
        of("/kind").unwrap_or_default(),
    );
    let plural = match kind {
        kind if kind.ends_with("Policy") => {
            format!("{}ies", kind.trim_end_matches('y').to_lowercase())
        }
        _ if kind.is_empty() => bail!("no kind: {object}"),
        kind => format!("{}s", kind.to_lowercase()),
    };
    let root = match version {
        "v1" => "/api/v1".to_owned(),
        version => format!("/apis/{version}"),
    };
    Ok(match of("/metadata/namespace") {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}"),
        None => format!("{root}/{plural}"),
    })
}
