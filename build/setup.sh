#!/usr/bin/env bash
# Sets up all that `make demo` and `make test` need: Debian packages and a virtual environment from
# the lock file, with hashes. A second run finds everything in place and takes a moment.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "enclaved: $*" >&2; }
fail() { say "error: $*"; exit 1; }

[ "$(id -u)" -eq 0 ] || fail "root is needed for a private Docker in network namespaces: run this with sudo, or in a root shell"
[ "$(uname -m)" = x86_64 ] || fail "an x86_64 machine is needed (the seccomp profile and the sample image are for it)"
command -v apt-get >/dev/null || fail "Debian's apt-get is needed: run this on Debian 12 or 13"

# program -> Debian package that brings it
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need dockerd docker.io
need docker docker.io
need containerd containerd
need gcc gcc # a test builds a probe that tries to open forbidden sockets
[ -e /usr/lib/x86_64-linux-gnu/libc.a ] || missing+=(libc6-dev)
need docker-registry docker-registry
need iptables iptables
need nft nftables
need unbound unbound
need qemu-system-x86_64 qemu-system-x86 # its libraries: tests/vm runs a newer one, unpacked
need iperf3 iperf3 # make bench-net
need ip iproute2
need nsenter util-linux
need sysctl procps
need tini tini
need rclone rclone # where the parent copies checkpoints to
need age age       # make bench
need restic restic # make bench
need shellcheck shellcheck
need mmdebstrap mmdebstrap # the root of an enclave
[ -e /usr/include/libnetfilter_queue/libnetfilter_queue.h ] || missing+=(libnetfilter-queue-dev)
[ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 || missing+=(busybox-static)

python=""
for candidate in python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || missing+=(python3 python3-venv)
header='import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
"${python:-false}" -c "$header" 2>/dev/null || missing+=(python3-dev)

if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    # Packages must not start their services: Docker here is a private one.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
    [ -n "$python" ] || python=python3
fi

lock=build/requirements-dev.lock
stamp=.venv/.lock
if ! cmp -s "$lock" "$stamp"; then
    say "making the virtual environment from $lock"
    rm -rf .venv
    "$python" -m venv .venv
    install=(.venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps)
    # NetfilterQueue comes as source: it is built with what the lock file names, and fetches nothing.
    tools='/^(cython|setuptools)==/ {found = 1} found; !/\\$/ {found = 0}'
    "${install[@]}" --require-hashes -r <(awk "$tools" "$lock")
    "${install[@]}" --require-hashes --no-build-isolation -r "$lock"
    "${install[@]}" --no-build-isolation -e .
    cp "$lock" "$stamp"
fi
