"""What is in an image, as far as it is chosen here; everything else follows from it."""

import re

SUITE = "trixie"
PYTHON = "3.13"
# Of the suite's C library, 2.41: which wheels run there.
GLIBC_MINOR = 41
# With what these depend on, and Debian's essential packages.
ROOT = (
    "busybox-static", "ca-certificates", "chrony", "containerd", "docker.io", "e2fsprogs", "iproute2", "iptables", "mount",
    "procps",
    "python3", "tini", "unbound",
)  # fmt: skip
KERNEL = "linux-image-cloud-amd64"
# Sources of one module, and what it is compiled with.
TOOLS = ("gcc-14", "linux-headers-cloud-amd64", "linux-source-6.12", "make", "xz-utils")

# As nitro-cli's, without what Linux does not know; measured. AppArmor has no profiles here.
CMDLINE = "reboot=k panic=30 pci=off console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd random.trust_cpu=on apparmor=0"

# Inserted by init, with those that they depend on: nothing loads one later.
MODULES = (
    "virtio_mmio", "vmw_vsock_virtio_transport", "nsm", "ptp_kvm", "tun", "overlay", "loop", "veth", "bridge", "br_netfilter",
    "nf_conntrack", "nf_conntrack_netlink", "nfnetlink_queue",
    "iptable_filter", "iptable_nat", "iptable_mangle", "iptable_raw",
    "ip6table_filter", "ip6table_nat", "ip6table_mangle",
    "xt_conntrack", "xt_connlimit", "xt_nat", "xt_tcpudp", "xt_addrtype", "xt_MASQUERADE", "xt_comment", "xt_NFQUEUE", "xt_mark",
    "xt_multiport",
)  # fmt: skip

# Of the packages: what nothing here runs. 200 MB, and all that could unpack, compile or fetch something.
NOT_RUN = re.compile(
    r"(usr/bin/(docker|ctr|dnet|containerd-shim|containerd-shim-runc-v1|perl.*|deb.*|apt.*|dpkg.*|gpgv.*|sqv|pydoc3.*|pygettext3.*|pdb3.*)"
    r"|usr/sbin/(ovrouter|docker-proxy|unbound-(control|control-setup|checkconf|host|anchor)|dpkg-.*)"
    r"|usr/lib/x86_64-linux-gnu/(perl.*|libperl.*|libapt.*|libdb-5.*|gconv)|usr/lib/(apt|dpkg|systemd|udev)"
    r"|usr/include|usr/games|usr/lib/python3/dist-packages"
    r"|usr/lib/python3\.\d+/(test|idlelib|lib2to3|tkinter|turtledemo|ensurepip|pydoc_data|config-.*)"
    r"|usr/share/(doc|doc-base|man|info|locale|lintian|zoneinfo|perl5?|perl/.*|debconf|dpkg|common-licenses|keyrings|bash-completion|zsh"
    r"|python-wheels|python3|pixmaps|applications)"
    r"|var/lib/(apt|dpkg|systemd|ucf|pam)|var/(cache|log|backups)/.*|etc/(apt|dpkg|machine-id|init\.d|rc.\.d|cron.*|systemd|perl|debconf\.conf)"
    r"|(boot|home|media|mnt|opt|srv|root/.*|dev/.*|tmp/.*|run/.*))"
)
