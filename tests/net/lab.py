"""Namespaces joined as in life: internet - parent - (stream) - enclave - containers.

A Unix stream stands in for the vsock. Everything has a name of its own and is ended by pid.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

WHO = Path(__file__).with_name("who.py")
INTERNET, ELSEWHERE, PARENT = "54.0.0.1", "5.5.5.5", "54.0.0.2"
INTERNET_V6, PARENT_V6 = "2600:1::1", "2600:1::2"
FORBIDDEN = ("169.254.169.254", "10.9.9.9", "172.20.1.1", "100.64.0.1", "192.168.7.7")
# Container -> its bridge's address and its own.
CONTAINERS = {"c1": ("10.200.0.1", "10.200.0.2"), "c2": ("10.200.0.17", "10.200.0.18")}
START_S = 20


def run(*command, check=True, text=None, timeout=60):
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


class Lab:
    """The namespaces; `start` runs netstack at both ends."""

    def __init__(
        self, folder, kind="tun", ipv6=False, containers=True, queues=1, resolver=None, inside=None
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.kind, self.ipv6, self.queues = kind, ipv6, queues
        self._tag = "n" + secrets.token_hex(3)
        self._processes = []
        self.containers = CONTAINERS if containers else {}
        self.spaces = ["inet", "par", "enc", *self.containers]
        self.ends = {}
        self._write_configuration(resolver, inside or {})

    # --- namespaces

    def up(self):
        for name in self.spaces:
            run("ip", "netns", "add", self.space(name))
            self.do(name, "ip", "link", "set", "lo", "up")
        run("ip", "-n", self.space("par"), "link", "add", "eth0", "type", "veth", "peer", "name",
            "veth0", "netns", self.space("inet"))  # fmt: skip
        for name, device, address in (("par", "eth0", PARENT), ("inet", "veth0", INTERNET)):
            self.do(name, "ip", "addr", "add", f"{address}/24", "dev", device)
            if self.ipv6:
                v6 = PARENT_V6 if name == "par" else INTERNET_V6
                self.do(name, "ip", "addr", "add", f"{v6}/64", "dev", device, "nodad")
            self.do(name, "ip", "link", "set", device, "up")
        self.do("par", "ip", "route", "add", "default", "via", INTERNET)
        if self.ipv6:
            self.do("par", "ip", "-6", "route", "add", "default", "via", INTERNET_V6)
        for address in (ELSEWHERE, *FORBIDDEN):
            self.do("inet", "ip", "addr", "add", f"{address}/32", "dev", "lo")
        for number, (name, (gateway, own)) in enumerate(self.containers.items(), 1):
            self._add_container(name, f"br{number}", gateway, own)

    def _add_container(self, name, bridge, gateway, own):
        self.do("enc", "ip", "link", "add", bridge, "type", "bridge")
        self.do("enc", "ip", "addr", "add", f"{gateway}/28", "dev", bridge)
        self.do("enc", "ip", "link", "set", bridge, "up")
        run("ip", "-n", self.space("enc"), "link", "add", f"v{name}", "type", "veth", "peer", "name",
            "eth0", "netns", self.space(name))  # fmt: skip
        self.do("enc", "ip", "link", "set", f"v{name}", "master", bridge, "up")
        self.do(name, "ip", "addr", "add", f"{own}/28", "dev", "eth0")
        self.do(name, "ip", "link", "set", "eth0", "up")
        self.do(name, "ip", "route", "add", "default", "via", gateway)

    def down(self):
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        for name in self.spaces:
            run("ip", "netns", "del", self.space(name), check=False)

    def space(self, name):
        return f"{self._tag}-{name}"

    def enter(self, name):
        return ["ip", "netns", "exec", self.space(name)]

    def do(self, name, *command, check=True, text=None, timeout=60):
        return run(*self.enter(name), *command, check=check, text=text, timeout=timeout)

    def spawn(self, name, *command, **more):
        process = subprocess.Popen([*self.enter(name), *command], **more)
        self._processes.append(process)
        return process

    # --- netstack

    def _write_configuration(self, resolver, inside):
        plane = f'[plane]\nkind = "{self.kind}"\nqueues = {self.queues}\n'
        at = self.folder
        (at / "parent.toml").write_text(
            f'state = "{at}/parent"\nuplink = "eth0"\npackets = "unix:{at}/packets.sock"\n'
            f'control = "unix:{at}/control.sock"\nraw_listen = "unix:{at}/out.sock"\n'
            f'raw_peer = "unix:{at}/in.sock"\n{plane}'
        )
        more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in inside.items())
        found = "resolver = false\n" if resolver is None else ""
        asked = "" if resolver is None else "[resolver]\n" + "".join(
            f"{k} = {json.dumps(v)}\n" for k, v in resolver.items()
        )  # fmt: skip
        (at / "enclave.toml").write_text(
            f'state = "{at}/enclave"\npackets = "unix:{at}/packets.sock"\n{found}'
            f'control = "unix:{at}/control.sock"\nlocal = "unix:{at}/local.sock"\n'
            f'raw_listen = "unix:{at}/in.sock"\nraw_peer = "unix:{at}/out.sock"\n'
            f'{plane}[inside]\ncontainers = ["10.200.0.0/16", "10.201.0.0/22"]\n{more}{asked}'
        )

    def start(self, *ends):
        """Start what is not running and wait until packets can flow."""
        ends = ends or ("parent", "enclave")
        for end in ends:
            (self.folder / f"{end}.ready").unlink(missing_ok=True)
            with (self.folder / f"{end}.log").open("a") as log:
                self.ends[end] = self.spawn(
                    "par" if end == "parent" else "enc",
                    sys.executable, "-m", "netstack", end, "--config", f"{self.folder}/{end}.toml",
                    "--ready-file", f"{self.folder}/{end}.ready", stderr=log,
                )  # fmt: skip
        for end in ends:
            until(lambda end=end: (self.folder / f"{end}.ready").exists(), START_S, self.logs)
        return self

    def stop(self, *ends):
        for end in ends or ("enclave", "parent"):
            process = self.ends.pop(end)
            process.terminate()
            assert process.wait(20) == 0, self.logs()

    def kill(self, end):
        """kill -9 of the service; its pumps are gone with it."""
        process = self.ends.pop(end)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def remove(self, end):
        """``--remove``."""
        space = "par" if end == "parent" else "enc"
        config = f"{self.folder}/{end}.toml"
        self.do(space, sys.executable, "-m", "netstack", end, "--config", config, "--remove")

    def logs(self):
        return "\n".join(
            f"--- {end}\n{(self.folder / f'{end}.log').read_text()[-4000:]}"
            for end in ("parent", "enclave")
            if (self.folder / f"{end}.log").exists()
        )

    def log(self, end):
        return (self.folder / f"{end}.log").read_text()

    # --- asking

    def serve(self, name, port):
        process = self.spawn(name, sys.executable, str(WHO), "serve", str(port))
        until(lambda: f":{port} " in self.do(name, "ss", "-Htuln"), START_S)
        return process

    def ask(self, name, kind, host, port, source_port=0, size=10, timeout_ms=3_000):
        words = (kind, host, str(port), str(source_port), str(size), str(timeout_ms))
        return self.do(name, sys.executable, "-I", "-S", str(WHO), "ask", *words).strip()

    def blocked(self, name, kind, host, port):
        """Nothing comes back within what is a long time here."""
        return self.ask(name, kind, host, port, timeout_ms=500).startswith("ERR")

    def call(self, method, **params):
        """Ask the enclave's netstack, as the server inside would."""
        code = (
            "import json,sys,trio\nfrom netstack import control,vsock\n"
            "method, params = json.loads(sys.argv[2])\n"
            "async def go():\n"
            "    try: return await control.call(vsock.parse_address(sys.argv[1]), method, **params)\n"
            "    except control.Refused as refusal: return {'refused': str(refusal)}\n"
            "print(json.dumps(trio.run(go)))"
        )
        where = f"unix:{self.folder}/local.sock"
        said = run(sys.executable, "-c", code, where, json.dumps([method, params]))
        return json.loads(said)


class Held:
    """A TCP connection that sends when asked, and says whether all was acknowledged."""

    def __init__(self, lab, name, host, port):
        self.process = lab.spawn(
            name, sys.executable, "-I", "-S", str(WHO), "hold", host, str(port),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout.readline() == "up\n"
        self.sent = 0

    def still_there(self):
        """A byte more was sent and acknowledged."""
        self._say("more")
        self.sent += 1
        return self.process.stdout.readline() == "acknowledged\n"

    def end(self):
        """All that was sent has arrived."""
        self._say("end")
        assert self.process.stdout.readline().split()[2] == str(self.sent)

    def _say(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()


def until(true, within_s, why=lambda: ""):
    end = time.monotonic() + within_s
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"not within {within_s} s: {why()}")
        time.sleep(0.02)


@contextmanager
def running(folder, **options):
    """A lab with netstack up at both ends."""
    lab = Lab(folder, **options)
    with ExitStack() as stack:
        stack.callback(lab.down)
        lab.up()
        yield lab.start()
