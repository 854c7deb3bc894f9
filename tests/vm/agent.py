"""The first program of the guest: does what the test on the host asks for, over AF_VSOCK.

One JSON line a request, one a reply: ``{"run": [...], "timeout": s}`` -> ``{"code", "out"}``; ``{"start":
[...], "log": path}`` -> ``{"pid"}``; ``{"kill": pid}``.
"""

import json
import os
import signal
import socket
import subprocess

PARENT, PORT = 3, 7_000
started = {}


def handle(request):
    if "run" in request:
        try:
            done = subprocess.run(
                request["run"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=request.get("timeout", 60), errors="replace", check=False,
            )  # fmt: skip
        except (subprocess.TimeoutExpired, OSError) as error:
            return {"code": -1, "out": str(error)}
        return {"code": done.returncode, "out": done.stdout}
    if "start" in request:
        with open(request["log"], "ab") as log:
            process = subprocess.Popen(
                request["start"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        started[process.pid] = process
        return {"pid": process.pid}
    if "write" in request:
        with open(request["write"], "w") as file:
            file.write(request["text"])
        return {}
    os.kill(request["kill"], request.get("signal", signal.SIGKILL))
    return {"code": started.pop(request["kill"]).wait()}


def main():
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    sock.connect((PARENT, PORT))
    with sock, sock.makefile("rwb") as stream:
        for line in stream:
            stream.write(json.dumps(handle(json.loads(line))).encode() + b"\n")
            stream.flush()


main()
