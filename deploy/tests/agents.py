"""Agents for tests: started as a user starts them, asked as any program asks them, and gone when a test ends."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# How long a condition may take to come true before a test gives up on it.
PATIENCE_S = 60


def command():
    """The command `dispatch` that is tested: that of the debug profile, or the one that DISPATCH names."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = Path(os.environ.get("DISPATCH", ROOT / target / "debug/dispatch")).resolve()
    if not path.exists():
        raise SystemExit(f"{path} is not there: cargo build -p keydispatch-cli --features agent")
    return str(path)


def environment():
    """What is set where the tests run is not what is tested."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DISPATCH_")}


def tool(name, install):
    """The path of a tool. Where it is missing the test is skipped and says so; where ALL_TOOLS is set, it fails."""
    # Servers are where a user's PATH does not reach.
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        text = f"{name} is not installed: {install}"
        if os.environ.get("ALL_TOOLS"):
            raise AssertionError(text)
        raise unittest.SkipTest(text)
    return path


def run(*arguments, **options):
    """Runs a tool to its end; what it says, where it fails, is the failure."""
    done = subprocess.run(
        [str(argument) for argument in arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def eventually(what, probe):
    """Waits until `probe` returns without an AssertionError, and returns what it returns."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return probe()
        except (AssertionError, OSError) as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {PATIENCE_S} s: {what}; last seen: {error}") from error
        time.sleep(0.05)


@contextlib.contextmanager
def process(*arguments, **options):
    """A process that ends with the test."""
    child = subprocess.Popen([str(argument) for argument in arguments], **options)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout:
            child.stdout.close()


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Agents:
    """Some agents of one cluster: `sockets`, and where they listen for HTTP (`api`) and for metrics (`ops`)."""

    def __init__(self, said):
        def after(start):
            return [line.removeprefix(start) for line in said if line.startswith(start)]

        self.sockets = after("api    unix:")
        self.api = after("api    http://")
        self.ops = [address.removesuffix("/metrics") for address in after("ops    http://")]

    def ask(self, method, path, body=None, agent=0):
        """The status and the JSON of an answer over the unix socket."""
        with contextlib.closing(UnixConnection(self.sockets[agent])) as connection:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None

    def ok(self, method, path, body=None, agent=0):
        """The JSON of an answer that has to be a good one."""
        status, answer = self.ask(method, path, body, agent)
        assert status < 300, f"{method} {path}: {status} {answer}"
        return answer

    def metrics(self, agent=0):
        """What its /metrics says."""
        connection = http.client.HTTPConnection(self.ops[agent], timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.read().decode()

    def put(self, name, service_type, address, **more):
        """Registers an endpoint that lives until it is deleted."""
        body = {"type": service_type, "address": address, "lease": {"agent": True}, **more}
        return self.ok("PUT", f"/v1/endpoints/{name}", body)


@contextlib.contextmanager
def agents(count=3, *settings):
    """`dispatch agent --dev COUNT`, with settings as KEY=VALUE, until the block ends; then Ctrl-C has to end it well."""
    arguments = [command(), "agent", "--dev", str(count)]
    for setting in settings:
        arguments += ["--set", setting]
    with tempfile.TemporaryDirectory() as directory:
        with process(*arguments, stdout=subprocess.PIPE, text=True, env={**environment(), "TMPDIR": directory}) as child:
            said = []
            for line in child.stdout:
                said.append(line.rstrip("\n"))
                if line.startswith("Ctrl-C"):
                    break
            else:
                raise AssertionError(f"the agents ended: {said}")
            yield Agents(said)
            child.send_signal(signal.SIGINT)
            assert child.wait(PATIENCE_S) == 0
