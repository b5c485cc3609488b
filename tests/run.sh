#!/usr/bin/env bash
# Installs what the tests need, builds, runs all of them.
#
# Some tests need root, FUSE and loop devices. Where those are missing the
# tests say what they skip; with CI set that is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo_dir=$(./mount.sh --install-only \
    attr e2fsprogs faketime fio fuse3 mount python3 qemu-utils restic rsync strace systemd \
    util-linux vim xfsprogs)
export PATH=$cargo_dir:$PATH:/usr/sbin:/sbin

missing=()
if [ "$(id -u)" != 0 ]; then missing+=("root: loop mounts, other users' permissions"); fi
if ! [ -w /dev/fuse ]; then missing+=("/dev/fuse: everything through a mount"); fi
probe=$(mktemp)
trap 'rm -f "$probe"' EXIT
truncate -s 1M "$probe"
if loop=$(losetup --find --show "$probe" 2>/dev/null); then
    losetup --detach "$loop"
else
    missing+=("loop devices: filesystems inside an image")
fi

if [ -n "${CI:-}" ]; then export SNAPDISK_TEST_REQUIRE_ALL=1; fi
if [ ${#missing[@]} -gt 0 ]; then
    {
        echo "=================================================================="
        echo "SKIPPED are the tests that need what this machine does not give:"
        printf '  %s\n' "${missing[@]}"
        echo "=================================================================="
    } >&2
    if [ -n "${SNAPDISK_TEST_REQUIRE_ALL:-}" ]; then
        echo "nothing may be skipped with CI set" >&2
        exit 1
    fi
fi

cargo build --release --locked --all-targets
SNAPDISK=$(realpath "${CARGO_TARGET_DIR:-target}/release/snapdisk")
export SNAPDISK
for script in tests/*.sh; do
    if [ "$script" != tests/run.sh ]; then
        echo "+ $script"
        "$script"
    fi
done
# With what the tests counted.
cargo test --release --locked --no-fail-fast -- --show-output
