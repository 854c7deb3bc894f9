#!/bin/sh
# Packages from one archive and nowhere else; leaves no list, no cache and no log behind.
# install.sh ARCHIVE SECURITY PACKAGE...
set -eu
archive=$1 security=$2
shift 2
export DEBIAN_FRONTEND=noninteractive
rm -rf /etc/apt/sources.list.d
printf 'deb %s trixie main\ndeb %s trixie-security main\n' "$archive" "$security" >/etc/apt/sources.list
# Services are started by us, not by being installed.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
printf 'path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n' \
    >/etc/dpkg/dpkg.cfg.d/enclaved
apt-get -qq -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3 update
apt-get -qq -y --no-install-recommends upgrade >/dev/null
apt-get -qq -y --no-install-recommends install "$@" >/dev/null
apt-get clean
rm -rf /var/lib/apt/lists /var/cache/apt /var/cache/ldconfig/aux-cache /var/log/apt /var/log/dpkg.log \
    /var/log/alternatives.log /usr/sbin/policy-rc.d /etc/machine-id /var/lib/dbus/machine-id
