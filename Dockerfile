# The enclave's root: Debian 13, Docker, and what of this repository runs inside. Everything that is measured is in here.
#
#   docker build -t enclaved .
#
# Versions are those of one day of Debian's archive; wheels have hashes; the base is named by digest.
ARG BASE=debian:trixie-slim@sha256:a29215f6a35e51e22adffa17f89e9d2ef06214e64a2bad10d765c46aea49f11f
ARG ARCHIVE=http://snapshot.debian.org/archive/debian/20261120T000000Z
ARG SECURITY=http://snapshot.debian.org/archive/debian-security/20261120T000000Z

FROM ${BASE} AS base
COPY build/image/install.sh /tmp/install.sh

# Python's packages come together here, where there is pip; nothing else of this stage gets into the root.
FROM base AS wheels
ARG ARCHIVE
ARG SECURITY
RUN sh /tmp/install.sh "$ARCHIVE" "$SECURITY" python3 python3-pip ca-certificates
# Where the index cannot be reached, the wheels come with the context; their hashes are checked all the same.
ARG PIP_OPTIONS=
COPY build/requirements.lock build/wheel[s] /tmp/wheels/
# Compiled by content, not by date: dates differ from build to build, and without this every start compiles anew.
RUN python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
        --no-compile --target /packages $PIP_OPTIONS -r /tmp/wheels/requirements.lock \
    && rm -rf /packages/bin \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /packages
COPY bot /own/bot
COPY handlers /own/handlers
COPY keycrux_client /own/keycrux_client
COPY netstack /own/netstack
COPY nips /own/nips
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /own

FROM base
ARG ARCHIVE
ARG SECURITY
RUN sh /tmp/install.sh "$ARCHIVE" "$SECURITY" \
        ca-certificates chrony containerd docker.io e2fsprogs iproute2 iptables procps python3 tini unbound \
    && rm /tmp/install.sh
COPY --from=wheels /packages /usr/local/lib/python3.13/dist-packages
COPY --from=wheels /own /usr/local/lib/python3.13/dist-packages
COPY enclave.sh /usr/local/sbin/enclave.sh
COPY build/image/enclaved /usr/local/bin/enclaved
RUN chmod 755 /usr/local/sbin/enclave.sh /usr/local/bin/enclaved
CMD ["tini", "-s", "--", "/usr/local/sbin/enclave.sh"]
