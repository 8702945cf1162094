#!/usr/bin/env bash
# What a run of handfast may leave on a machine: network namespaces, pinned maps,
# devices, routing rules, files, daemons. Tests compare before and after.
#
#   scripts/leftovers.sh list             one finding a line
#   scripts/leftovers.sh compare BEFORE   fails if there is anything that BEFORE has not
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

list() {
    ip netns list 2>/dev/null | awk '$1 ~ /^(hf|handfast)/ { print "namespace " $1 }'
    ip -o link show 2>/dev/null | awk -F': ' '$2 ~ /^hf/ { sub(/@.*/, "", $2); print "device " $2 }'
    { ip rule show; ip -6 rule show; } 2>/dev/null | awk '/lookup 7250/ { print "rule " $0 }'
    nft list tables 2>/dev/null | awk '$3 ~ /^handfast/ { print "nftables " $2 " " $3 }'
    local pin
    for pin in /sys/fs/bpf/handfast* /sys/fs/bpf/hf*; do
        [ ! -e "$pin" ] || echo "pin $pin"
    done
    local folder
    for folder in /run/handfast-demo/* /run/wireguard/hf*.sock; do
        [ ! -e "$folder" ] || echo "file $folder"
    done
    # By the program's own file name, so that an editor with a file of that name is none.
    local dir exe
    for dir in /proc/[0-9]*; do
        exe=$(readlink "$dir/exe" 2>/dev/null) || continue
        exe=${exe% (deleted)}
        case ${exe##*/} in
            handfast | wireguard-go) echo "daemon ${exe##*/} (pid ${dir#/proc/})" ;;
        esac
    done
}

case ${1:-} in
    list) list | sort -u ;;
    compare)
        # Processes that were told to end get a moment for it.
        for _ in 1 2 3 4 5 6; do
            found=$(list | sort -u | comm -13 "${2:?file of the state before}" -)
            [ -n "$found" ] || exit 0
            sleep 0.5
        done
        echo "left behind by the tests:" >&2
        echo "$found" >&2
        exit 1
        ;;
    *)
        echo "usage: scripts/leftovers.sh list | compare BEFORE" >&2
        exit 2
        ;;
esac
