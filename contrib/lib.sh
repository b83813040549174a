# What the scripts in contrib share.  Sourced by them, not run.
# shellcheck shell=bash

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$repository/.venv

# The binding of libnftables must be the distribution's own, so the Python must
# be too: whatever other python3 comes first on the path is passed over.
system_python=/usr/bin/python3

# nft and modprobe are here, which is not on everybody's path.
PATH=$PATH:/usr/sbin:/sbin

say() {
    printf '== %s\n' "$*"
}

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif has sudo; then
        sudo "$@"
    else
        fail "this needs root or sudo: $*"
    fi
}

is_installed() {
    if has apt-get; then
        [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
    else
        rpm --quiet --query "$1"
    fi
}

# Install those of the named packages that are missing.
install_packages() {
    local name missing=()
    for name; do
        is_installed "$name" || missing+=("$name")
    done
    if [ ${#missing[@]} = 0 ]; then
        say "installed already: $*"
        return
    fi
    say "installing: ${missing[*]}"
    if has apt-get; then
        # A machine that has just started may still be busy with its own upgrades.
        local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
        as_root "${apt[@]}" update
        as_root "${apt[@]}" install --yes --no-install-recommends "${missing[@]}" >/dev/null
    else
        as_root dnf install --quiet --assumeyes "${missing[@]}"
    fi
}

# Put the files of package $1 into directory $2, without installing it: nothing of it is started.
unpack_package() {
    local name=$1 directory=$2 download
    if [ -e "$directory" ]; then
        say "unpacked already: $name"
        return
    fi
    say "unpacking $name into $directory"
    download=$(mktemp -d)
    (
        cd "$download"
        # Where nothing was installed just now, nobody may have asked what there is.
        apt-get -qq download "$name" 2>/dev/null || { as_root apt-get -qq update && apt-get -qq download "$name"; }
        dpkg-deb --extract ./*.deb files
    )
    mkdir -p "$(dirname "$directory")"
    mv "$download/files" "$directory"
    rm -rf "$download"
}

# What nfpkd needs of the system, and a .venv from the system's Python.
set_up() {
    if has apt-get; then
        # The compiler and the -dev packages build NetfilterQueue.
        install_packages python3-nftables nftables python3-venv python3-dev libnetfilter-queue-dev gcc iproute2
    elif has dnf; then
        install_packages python3-nftables nftables python3-devel libnetfilter_queue-devel gcc iproute
    else
        fail "neither apt-get nor dnf is here; see contrib/lib.sh for what to install by hand"
    fi
    # One that another Python made, or that an upgrade of the system broke, is made anew.
    if "$venv/bin/python" -I -c 'import nftables, pip' 2>/dev/null; then
        say "there already: $venv"
    else
        say "making $venv from $system_python with the system's packages"
        "$system_python" -m venv --clear --system-site-packages "$venv"
    fi
}

install_in_venv() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
