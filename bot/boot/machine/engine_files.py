"""What containerd and dockerd are told, and how they are started."""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class EnginePaths:
    """Where an engine lives. ``run`` holds sockets, pids and configuration; keep it short: a socket's path has 107 bytes."""

    run: Path
    data_root: Path
    socket: Path

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    def containerd_command(self) -> list[str]:
        return ["containerd", "-c", str(self.run / "containerd.toml")]

    def dockerd_command(self) -> list[str]:
        return [
            "dockerd", "--config-file", f"{self.run}/daemon.json",
            "--containerd", str(self.containerd_socket),
            "--data-root", str(self.data_root), "--exec-root", f"{self.run}/exec",
            "-p", f"{self.run}/dockerd.pid", "-H", f"unix://{self.socket}", "--log-level", "warn",
        ]  # fmt: skip

    def write(self, settings: "EngineSettings") -> None:
        """Both configurations. Raises OSError."""
        self.run.mkdir(parents=True, exist_ok=True)
        (self.run / "containerd.toml").write_text(self._containerd_toml())
        (self.run / "daemon.json").write_text(settings.daemon_json())

    def _containerd_toml(self) -> str:
        return (
            f'version = 2\nroot = "{self.run}/containerd"\nstate = "{self.run}/containerd-run"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self.containerd_socket}"\n'
        )


@dataclass(frozen=True)
class EngineSettings:
    """``insecure_registries``: spoken to without TLS, in development. ``network``: what netstack wants of dockerd."""

    cgroup_parent: str
    insecure_registries: tuple[str, ...] = ()
    network: dict[str, object] = field(default_factory=lambda: {"userland-proxy": False})

    def daemon_json(self) -> str:
        return json.dumps(
            {
                # Containers outlive a crash of dockerd.
                "live-restore": True,
                "icc": False,
                "insecure-registries": list(self.insecure_registries),
                "default-address-pools": [{"base": "10.200.0.0/16", "size": 28}],
                # One bridge for all tenants: as many as a bridge has ports.
                "bip": "10.201.0.1/22",
                "cgroup-parent": self.cgroup_parent,
                "max-concurrent-downloads": 4,
                **self.network,
            }
        )
