# Sourced by the other scripts: where our build tools are, and who is root.

tools=${XDG_CACHE_HOME:-$HOME/.cache}/handfast/tools
# /usr/sbin is not on every user's path, and ip, nft and bpftool are there.
export PATH=$tools/bin:$PATH:/usr/sbin:/sbin

# How to become root: nothing as root, else sudo, which keeps the environment.
root=
if [ "$(id -u)" != 0 ]; then
    root="sudo -E env PATH=$PATH"
fi

# Has cargo run tests as root, while the compiler stays who it is.
tests_as_root() {
    [ -n "$root" ] || return 0
    local host
    host=$(rustc -vV | awk '/^host:/ { gsub("-", "_", $2); print toupper($2) }')
    export "CARGO_TARGET_${host}_RUNNER=$root"
}
