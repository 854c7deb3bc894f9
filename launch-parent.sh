#!/bin/sh
# The host's side of an enclave. Checks what would otherwise fail later and less clearly, then becomes `enclaved parent`.
# launch-parent.sh [CONFIG [IMAGE]]: with IMAGE, an EIF, the enclave is started as well; it waits until its parent listens.
set -eu
config=${1:-/etc/enclaved/parent.toml}
image=${2:-}
problems=0

problem() {
    echo "launch-parent: error: $1" >&2
    echo "launch-parent:        $2" >&2
    problems=$((problems + 1))
}
warn() { echo "launch-parent: warning: $*" >&2; }

[ "$(id -u)" -eq 0 ] || problem "root is needed for devices, routes and the firewall" "run it with sudo"
[ -r "$config" ] || problem "there is no configuration $config" "see docs/operations.md, \"First launch\""
command -v enclaved >/dev/null || problem "enclaved is not installed" "install the wheel, and have it on PATH"
for program in ip nft; do
    command -v "$program" >/dev/null || problem "$program is not installed" "apt-get install iproute2 nftables"
done

for device in /dev/nitro_enclaves:nitro_enclaves /dev/vsock:vhost_vsock /dev/net/tun:tun; do
    path=${device%%:*} module=${device#*:}
    [ -e "$path" ] || modprobe "$module" 2>/dev/null || true
    [ -e "$path" ] || problem "there is no $path" "modprobe $module; on EC2 the instance must be launched with enclaves enabled"
done

# The allocator takes memory and CPUs from this host before any enclave can have them.
allocator=/etc/nitro_enclaves/allocator.yaml
if [ -r "$allocator" ]; then
    memory_mib=$(sed -n 's/^memory_mib: *\([0-9]*\).*/\1/p' "$allocator")
    cpus=$(sed -n 's/^cpu_count: *\([0-9]*\).*/\1/p' "$allocator")
    [ "${memory_mib:-0}" -ge 2048 ] || problem "the allocator sets aside ${memory_mib:-0} MiB" "memory_mib in $allocator is at least 2048"
    [ "${cpus:-0}" -ge 2 ] || problem "the allocator sets aside ${cpus:-0} CPUs" "cpu_count in $allocator is at least 2"
else
    problem "there is no $allocator" "install aws-nitro-enclaves-cli, and start nitro-enclaves-allocator.service"
fi

# Tenants' ports come in through this host: what already listens here, they cannot have.
if command -v ss >/dev/null; then
    for port in 80 443; do
        [ -z "$(ss -Hltn "sport = :$port")" ] || warn "port $port is taken on this host, containers cannot have it"
    done
fi
clock=/sys/devices/system/clocksource/clocksource0/current_clocksource
case $(cat "$clock" 2>/dev/null) in
kvm-clock | tsc) ;;
*) warn "the clock source of this host is $(cat "$clock" 2>/dev/null || echo unknown), not kvm-clock or tsc" ;;
esac

[ -z "$image" ] || [ -r "$image" ] || problem "there is no image $image" "see docs/image.md"

[ "$problems" -eq 0 ] || exit 1
if [ -n "$image" ]; then
    cid=$(sed -n 's/^peer_cid *= *\([0-9]*\).*/\1/p' "$config")
    enclaved image run "$image" --memory "$memory_mib" --cpus "$cpus" --cid "${cid:-16}" &
fi
exec enclaved parent run --config "$config"
