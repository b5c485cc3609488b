#!/usr/bin/env bash
# Builds snapdisk, installs it with what it needs, and mounts a store.
set -euo pipefail

usage() {
    cat <<'END'
usage: mount.sh MNT [STORE]              build, install, make STORE if there is none, mount it at MNT
       mount.sh --umount MNT             end it cleanly
       mount.sh --boot MNT [STORE]       the same as the first, and again after every boot (root, systemd)
       mount.sh --unboot MNT             no more after the next boot; what is mounted stays
       mount.sh --install-only [PKG...]  install what building needs and further Debian packages,
                                         print the directory of the cargo to use

STORE is /var/lib/snapdisk for root, $XDG_DATA_HOME/snapdisk (~/.local/share/snapdisk) for others.
The command goes to /usr/local/bin for root, to ~/.local/bin for others. Run again, it does no harm.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
uid=$(id -u)
HOME=${HOME:-$(getent passwd "$uid" | cut -d: -f6)}
if [ "$uid" = 0 ]; then
    bin_dir=/usr/local/bin default_store=/var/lib/snapdisk options=(-o allow_other) as_root=()
else
    bin_dir=$HOME/.local/bin default_store=${XDG_DATA_HOME:-$HOME/.local/share}/snapdisk
    options=() as_root=(sudo)
fi
say() { printf 'mount.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
# The systemd unit that mounts something at $1.
unit_of() { echo "snapdisk-$(systemd-escape --path "$1").service"; }
unit_dir=/etc/systemd/system
quoted() { # quoted TEXT: as it is inside quotes in a unit
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"}
    echo "${text//%/%%}"
}

# Whoever unmounts without systemd leaves nothing for ExecStop to do, which is
# no failure to restart after; what is in use then, SIGTERM unmounts later.
# A mount has to reach the whole system, so nothing here may give the service
# a mount namespace of its own; Landlock confines the daemon instead.
unit_text() { # unit_text STORE MNT
    local store mnt dirs
    # As systemd reads text in quotes; in commands it also expands $.
    dirs=("$(quoted "$1")" "$(quoted "$(dirname "$2")")")
    store=$(quoted "$1") mnt=$(quoted "$2")
    store=${store//\$/\$\$} mnt=${mnt//\$/\$\$}
    cat <<END
[Unit]
Description=snapdisk: ${1//%/%%} at ${2//%/%%}
RequiresMountsFor="${dirs[0]}" "${dirs[1]}"
After=local-fs.target
Before=remote-fs.target

[Service]
Type=forking
ExecStart="$bin_dir/snapdisk" mount -o allow_other "$store" "$mnt"
ExecStop=-"$bin_dir/snapdisk" umount "$mnt"
Restart=on-failure
TimeoutStartSec=infinity
TimeoutStopSec=300
UMask=0077
OOMScoreAdjust=-500
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_SYS_RESOURCE CAP_SYS_PTRACE CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER
RestrictAddressFamilies=AF_UNIX
IPAddressDeny=any
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
KeyringMode=private

[Install]
WantedBy=multi-user.target
END
}

usage_error() { usage >&2; exit 2; }

# Installs those of the packages that are missing.
install_packages() {
    local package missing=()
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) == *" installed" ]] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "please install these packages, or what your system calls them: ${missing[*]}"
    [ "$uid" = 0 ] || command -v sudo >/dev/null ||
        die "not root and no sudo; as root: apt-get update && apt-get install -y ${missing[*]}"
    say "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -q >&2 || say "apt-get update failed, going on with the lists there are"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends \
        "${missing[@]}" >&2 || die "could not install ${missing[*]}"
}

# Whether the cargo and rustc found first are as new as Cargo.toml asks.
rust_is_new_enough() {
    local wanted found
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$here/Cargo.toml")
    (cd "$here" && cargo --version) >/dev/null 2>&1 || return 1
    found=$(cd "$here" && rustc --version 2>/dev/null | cut -d' ' -f2) || return 1
    printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort -VC
}

install_build_needs() {
    local dir needs=(fuse3 ca-certificates)
    command -v cc >/dev/null || needs+=(gcc libc6-dev)
    install_packages "${needs[@]}" "$@"
    for dir in "" "$HOME/.cargo/bin:" "/usr/bin:"; do
        PATH=$dir$PATH
        if rust_is_new_enough; then return; fi
    done
    install_packages rustc-web cargo-web # PATH begins with /usr/bin now
    hash -r
    rust_is_new_enough || die "no Rust of the version that Cargo.toml asks for: see https://rustup.rs"
}

# The type and source of what is mounted at $1, empty if nothing is. From
# mountinfo, since a path below a mount whose daemon died cannot be looked at.
mounted_at() {
    at=$(sed 's/\\/\\134/g; s/ /\\040/g; s/\t/\\011/g' <<<"$1") awk '$5 == ENVIRON["at"] { for (i = 7; $i != "-"; i++); found = $(i + 1) " " $(i + 2) }
        END { print found }' /proc/self/mountinfo
}

enable_at_boot() {
    local unit
    unit=$(unit_of "$mnt")
    unit_text "$store" "$mnt" >"$unit_dir/$unit.new"
    mv -- "$unit_dir/$unit.new" "$unit_dir/$unit"
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
    systemctl enable "$unit" 2>&1 | sed 's/^/mount.sh: /' >&2
    say "$store is mounted at $mnt at every boot, by $unit"
}

absolute() { # also where the last part cannot be looked at
    realpath -m -- "$1" 2>/dev/null || echo "$(realpath -m -- "$(dirname -- "$1")")/$(basename -- "$1")"
}

case ${1:-} in
    --help | -h) usage; exit ;;
    --install-only) install_build_needs "${@:2}"; dirname "$(command -v cargo)"; exit ;;
    --umount)
        [ $# = 2 ] || usage_error
        mnt=$(absolute "$2")
        read -r type _ <<<"$(mounted_at "$mnt")"
        [ -n "$type" ] || { say "nothing is mounted at $mnt"; exit 0; }
        [ "$type" = fuse.snapdisk ] || die "$mnt has a filesystem of type $type, which is left alone"
        PATH=$PATH:$bin_dir exec snapdisk umount "$mnt" ;;
    --unboot)
        [ $# = 2 ] || usage_error
        [ "$uid" = 0 ] || die "only root can change what happens at boot"
        unit=$(unit_of "$(absolute "$2")")
        [ -e "$unit_dir/$unit" ] || { say "nothing is mounted at $2 at boot"; exit 0; }
        systemctl disable "$unit" 2>&1 | sed 's/^/mount.sh: /' >&2
        rm -f -- "$unit_dir/$unit"
        [ ! -d /run/systemd/system ] || systemctl daemon-reload
        exit ;;
    --boot)
        [ "$uid" = 0 ] || die "only root can change what happens at boot"
        command -v systemctl >/dev/null ||
            die "no systemd here; this line in /etc/fstab does the same:
  ${3:-$default_store} ${2:-MNT} snapdisk defaults,_netdev 0 0"
        boot=yes
        shift ;;
    "" | -*) usage_error ;;
esac
case ${1:-} in "" | -*) usage_error ;; esac
[ $# -le 2 ] || usage_error
mnt=$(absolute "$1") store=$(absolute "${2:-$default_store}")
read -r type source <<<"$(mounted_at "$mnt")"
# mountinfo has \040 for a space; %b wants a 0 before the three digits.
source=$(printf '%b' "${source//\\/\\0}")
case $type in
    "") ;;
    fuse.snapdisk)
        [ $# = 1 ] || [ "$source" = "$store" ] ||
            die "$mnt has another store, $source, mounted; to end that: $0 --umount $mnt"
        store=$source
        # statfs, since the kernel answers stat from its cache for a while.
        if stat -f -- "$mnt" >/dev/null 2>&1; then
            say "$store is mounted at $mnt already"
            [ -n "${boot:-}" ] || exit 0
            serving=yes
        else
            say "the daemon that served $mnt is gone: mounting $store again"
        fi ;;
    *) die "$mnt has a filesystem of type $type ($source) mounted: choose another directory" ;;
esac

install_build_needs
[ -w /dev/fuse ] || die "no /dev/fuse, or not for this user: is the fuse module loaded (modprobe fuse)?"
cd "$here" # where a relative CARGO_TARGET_DIR counts from
cargo build --release --locked
built=${CARGO_TARGET_DIR:-target}/release/snapdisk
cmp -s "$built" "$bin_dir/snapdisk" || install -D -m 755 "$built" "$bin_dir/snapdisk"
# For lines in /etc/fstab, and `mount -t snapdisk`.
[ "$uid" != 0 ] || ln -sf -- "$bin_dir/snapdisk" /sbin/mount.snapdisk
[[ ":$PATH:" == *":$bin_dir:"* ]] || say "note: $bin_dir is not on your PATH"
[ -n "$type" ] || mkdir -p -- "$mnt"
if [ -z "$(ls -A -I lost+found -- "$store" 2>/dev/null)" ]; then
    mkdir -p -- "$(dirname -- "$store")"
    "$bin_dir/snapdisk" init "$store"
fi
if [ -n "${boot:-}" ]; then
    enable_at_boot
    [ -z "${serving:-}" ] || exit 0
    if [ -d /run/systemd/system ]; then
        systemctl start "$(unit_of "$mnt")"
        say "$store is mounted at $mnt"
        exit
    fi
fi
"$bin_dir/snapdisk" mount "${options[@]}" "$store" "$mnt"
say "$store is mounted at $mnt"
