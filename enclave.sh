#!/bin/sh
# The only child of an enclave's first process: when it ends, the enclave ends. It checks what no later program could mend,
# then keeps `enclaved boot` running: boot may die at any time, and takes up again what it finds.
set -eu
config=${ENCLAVED_CONFIG:-/etc/enclaved/enclaved.toml}
# Measured with the image: only an image for development has it.
development=/etc/enclaved/development

say() { echo "enclave.sh: $*" >&2; }
fail() {
    if [ -e "$development" ]; then
        say "DEVELOPMENT ONLY: going on although $*"
    else
        say "error: $*"
        exit 1
    fi
}

# Keys are made from the hypervisor's randomness, and times are judged by its clock: a host must not choose either.
rng=/sys/devices/virtual/misc/hw_random/rng_current
[ "$(cat "$rng" 2>/dev/null)" = nsm-hwrng ] || fail "the hardware random generator is not nsm-hwrng: $rng"
clock=/sys/devices/system/clocksource/clocksource0/current_clocksource
case $(cat "$clock" 2>/dev/null) in
kvm-clock | tsc) ;;
*) fail "the clock source is neither kvm-clock nor tsc: $clock" ;;
esac
[ -r "$config" ] || {
    say "error: there is no $config in this image"
    exit 1
}
ip link set lo up
# What the server says goes nowhere else but to a file in here; a development image shows it on its console as well.
if [ -e "$development" ]; then
    logs=$(sed -n 's/^log_dir *= *"\(.*\)"/\1/p' "$config")
    (
        while [ ! -e "${logs:=/run/enclaved/log}/server.log" ]; do sleep 1; done
        exec tail -n +1 -F "$logs/server.log"
    ) &
fi
# Debian's chrony slews towards the hypervisor's clock, where there is one.
if [ -e /dev/ptp0 ]; then
    chronyd 'refclock PHC /dev/ptp0 poll 3' 'makestep 1 3' || say "chronyd does not start: the clock is not slewed"
fi

while :; do
    status=0
    enclaved boot --config "$config" || status=$?
    # It was told to end: everything is saved.
    [ "$status" -ne 0 ] || exit 0
    # Another enclave went on from our state: this one must not be there any more.
    if [ "$status" -eq 3 ]; then
        say "error: overtaken by another enclave, this one ends"
        exit 3
    fi
    say "boot ended with status $status, starting it again"
    sleep 1
done
