# Sourced by the other scripts: where our build tools are, and who is root.

tools=${XDG_CACHE_HOME:-$HOME/.cache}/handfast/tools
# /usr/sbin is not on every user's path, and ip, nft and bpftool are there.
export PATH=$tools/bin:$PATH:/usr/sbin:/sbin

# How to become root: nothing as root, else sudo, which keeps the environment.
root=
if [ "$(id -u)" != 0 ]; then
    root="sudo -E env PATH=$PATH"
fi
