#!/usr/bin/env bash
# A real Kubernetes API server (1.20) and etcd for tests, from Debian 12's own packages.
#
#   kube-apiserver.sh build DIR      -> DIR/kube-apiserver, DIR/etcd        (once; about 6 minutes, 3 GB while building)
#   kube-apiserver.sh start DIR RUN [FLAG…] -> starts both on loopback, waits until ready, prints RUN/kubeconfig; with what
#                                       an earlier start left in RUN, it goes on from there. FLAGs are the API server's
#   kube-apiserver.sh stop RUN       -> stops what start started
#
# Nothing is installed: packages are unpacked under DIR/build. RBAC is on; the kubeconfig is cluster-admin;
# service accounts get tokens from the TokenRequest API. No controllers, no scheduler, no kubelet run:
# a test creates Node, Pod (with status) and ServiceAccount objects itself.
# Known limits: no CEL in CRD schemas (silently dropped), API of 1.20, kubectl wants --validate=false for newer fields.
set -euo pipefail
command=${1:?build, start or stop}; dir=$(realpath -m "${2:?a folder}")

build() {
  [[ -x $dir/kube-apiserver && -x $dir/etcd ]] && return
  local b=$dir/build; mkdir -p "$b"/apt/{lists/partial,cache/archives/partial,etc/apt.conf.d,etc/preferences.d,etc/sources.list.d} "$b"/{debs,root,home}
  local key=/usr/share/keyrings/debian-archive-keyring.gpg mirror
  mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources)
  cp /etc/apt/apt.conf.d/99* "$b/apt/etc/apt.conf.d/" 2>/dev/null || true
  printf '%s [signed-by=%s] %s bookworm main\n' deb "$key" "$mirror" deb-src "$key" "$mirror" > "$b/apt/etc/sources.list"
  cat > "$b/apt/apt.conf" <<CONF
Dir::Etc "$b/apt/etc"; Dir::Etc::sourcelist "$b/apt/etc/sources.list"; Dir::Etc::sourceparts "$b/apt/etc/sources.list.d";
Dir::State "$b/apt"; Dir::State::lists "$b/apt/lists"; Dir::State::status "/var/lib/dpkg/status"; Dir::Cache "$b/apt/cache";
Acquire::Languages "none"; APT::Sandbox::User "root";
CONF
  export APT_CONFIG="$b/apt/apt.conf"; apt-get update -q
  (cd "$b/debs"; apt-get download -q golang-1.19-go golang-1.19-src rsync jq libjq1 libonig5 libpopt0 libxxhash0 golang-github-modern-go-reflect2-dev etcd-server
   for d in ./*.deb; do dpkg -x "$d" "$b/root"; done)
  cp "$b/root/usr/bin/etcd" "$dir/"
  (cd "$b"; rm -rf k8s; apt-get source --download-only -q kubernetes/bookworm; dpkg-source -x kubernetes_1.20.5*.dsc k8s; cd k8s
   # the vendored reflect2 1.0.1 crashes on the first custom resource when built with Go 1.18 or later; the packaged 1.0.2 does not
   rm -rf vendor/github.com/modern-go/reflect2; cp -a "$b/root/usr/share/gocode/src/github.com/modern-go/reflect2" vendor/github.com/modern-go/
   mkdir -p .go/src/k8s.io; ln -sfn ../../.. .go/src/k8s.io/kubernetes
   export GOPROXY=off GOSUMDB=off GOTOOLCHAIN=local CGO_ENABLED=0 HOME="$b/home" GOROOT="$b/root/usr/lib/go-1.19" GOPATH="$PWD/.go"
   export PATH="$b/root/usr/lib/go-1.19/bin:$b/root/usr/bin:$PATH" LD_LIBRARY_PATH="$b/root/usr/lib/x86_64-linux-gnu"; unset GOFLAGS
   make WHAT=cmd/kube-apiserver GOLDFLAGS="-s -w"
   cp _output/local/go/bin/kube-apiserver "$dir/")
  chmod -R u+w "$b"; rm -rf "$b"
}

# For one cluster: its CA, the server's and the administrator's certificates, and what signs service accounts' tokens.
keys() {
  openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=test-ca -keyout pki/ca.key -out pki/ca.crt 2>/dev/null
  cert() { openssl req -newkey rsa:2048 -nodes -subj "$2" -keyout "pki/$1.key" -out "pki/$1.csr" 2>/dev/null
    openssl x509 -req -in "pki/$1.csr" -CA pki/ca.crt -CAkey pki/ca.key -CAcreateserial -days 30 -out "pki/$1.crt" -extfile <(echo "$3") 2>/dev/null; }
  cert server /CN=kube-apiserver "subjectAltName=IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc"
  cert admin /O=system:masters/CN=admin "extendedKeyUsage=clientAuth"
  openssl genrsa -out pki/sa.key 2048 2>/dev/null
}

start() {
  local run etcd_port api_port; run=$(realpath -m "${1:?a run folder}"); shift; mkdir -p "$run"/{pki,etcd}; cd "$run"
  api_port=${API_PORT:-16443} etcd_port=${ETCD_PORT:-12379}
  [[ -f pki/sa.key ]] || keys
  setsid "$dir/etcd" --data-dir etcd --listen-client-urls "http://127.0.0.1:$etcd_port" --advertise-client-urls "http://127.0.0.1:$etcd_port" \
    --listen-peer-urls "http://127.0.0.1:$((etcd_port + 1))" --initial-advertise-peer-urls "http://127.0.0.1:$((etcd_port + 1))" \
    --initial-cluster "default=http://127.0.0.1:$((etcd_port + 1))" --unsafe-no-fsync > etcd.log 2>&1 & echo $! > etcd.pid
  setsid "$dir/kube-apiserver" --etcd-servers="http://127.0.0.1:$etcd_port" --bind-address=127.0.0.1 --advertise-address=127.0.0.1 \
    --secure-port="$api_port" --insecure-port=0 --tls-cert-file=pki/server.crt --tls-private-key-file=pki/server.key --client-ca-file=pki/ca.crt \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=pki/sa.key --service-account-signing-key-file=pki/sa.key \
    --authorization-mode=RBAC --service-cluster-ip-range=10.96.0.0/16 --endpoint-reconciler-type=none \
    --disable-admission-plugins=ServiceAccount "$@" > apiserver.log 2>&1 & echo $! > apiserver.pid
  cat > kubeconfig <<CONF
apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: "https://127.0.0.1:$api_port", certificate-authority: $run/pki/ca.crt}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
users: [{name: admin, user: {client-certificate: $run/pki/admin.crt, client-key: $run/pki/admin.key}}]
CONF
  for _ in $(seq 120); do
    curl -sk --cert pki/admin.crt --key pki/admin.key "https://127.0.0.1:$api_port/readyz" 2>/dev/null | grep -qx ok && { echo "$run/kubeconfig"; return; }
    kill -0 "$(cat apiserver.pid)" 2>/dev/null || { echo "kube-apiserver ended: see $run/apiserver.log" >&2; return 1; }
    sleep 0.5
  done
  echo "kube-apiserver not ready after 60 s: see $run/apiserver.log" >&2; return 1
}

stop() {
  local p pid
  for p in apiserver etcd; do
    [[ -f $1/$p.pid ]] || continue
    pid=$(cat "$1/$p.pid"); kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true; rm -f "$1/$p.pid"
  done
}

case $command in
  build) build ;;
  start) start "${@:3}" ;;
  stop) stop "$dir" ;;
  *) echo "usage: kube-apiserver.sh build DIR | start DIR RUN [FLAG…] | stop RUN" >&2; exit 2 ;;
esac
