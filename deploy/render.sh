#!/usr/bin/env bash
# The plain manifests, made from the chart; --check only says whether they are what it says.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

out=deploy/kubernetes/handfast.yaml
made=$(mktemp)
trap 'rm -f "$made"' EXIT
{
    cat <<'HEAD'
# handfast on a Kubernetes cluster, without Helm; made from deploy/helm/handfast by deploy/render.sh.
# Set before use: the trust domain (example.org), the pod CIDRs (10.244.0.0/16) and the image (handfast:0.1.0).
#   kubectl apply --filename policies/schema/handfastpolicies.handfast.io.yaml --filename deploy/kubernetes/handfast.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: handfast-system
  labels:
    # Agents are privileged, and share the nodes' network.
    pod-security.kubernetes.io/enforce: privileged
HEAD
    helm template handfast deploy/helm/handfast --namespace handfast-system --no-hooks \
        --set trustDomain=example.org --set 'prefixRanges={10.244.0.0/16}' --set image.repository=handfast \
        2> >(grep -v 'found symbolic link' >&2) |
        sed -e '/app.kubernetes.io\/managed-by: Helm/d' -e '/^# Source: /d' -e '/helm.sh\/chart:/d'
} >"$made"

if [ "${1:-}" = --check ]; then
    cmp -s "$made" "$out" || {
        echo "$out is not what the chart says: run deploy/render.sh" >&2
        exit 1
    }
else
    cp "$made" "$out"
fi
