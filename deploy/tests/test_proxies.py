"""The recipes of docs/proxies.md, run as they stand there: every request at the owner of its key, and failures as described."""

import contextlib
import re
import socket
import tempfile
import threading
import unittest
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from agents import ROOT, UnixConnection, agents, eventually, process, run, tool

REQUESTS = 1000


def recipe(language):
    """The one block of the page in that language."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs/proxies.md").read_text(), re.S | re.M)
    assert len(blocks) == 1, f"{len(blocks)} blocks of {language}"
    return blocks[0]


def put(text, *places):
    """The recipe with this machine's paths; each has to be there."""
    for old, new in places:
        assert old in text, f"{old} is not in the recipe"
        text = text.replace(old, str(new))
    return text


@contextlib.contextmanager
def instance(name):
    """A web server that says who it is and what it was sent; its address, and what it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.path)
            self.send_response(200)
            self.send_header("X-Instance", name)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def hangs_up():
    """A server that reads a request and hangs up; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        connection.recv(4096)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def keys():
    """Keys as people have them, and some that a URL has to encode."""
    odd = ["a b", "a+b", "ä", "100%", "a&b=c", "#", "?", "a/b/../c", "\u65e5\u672c", '"', "'", "%20", ";", "x" * 500]
    return odd + [f"room-{at}" for at in range(REQUESTS - len(odd))]


class Proxies(unittest.TestCase):
    def nginx(self, directory, agent, listen):
        program = tool("nginx", "apt-get install nginx-light")
        text = put(recipe("nginx"), ("/run/dispatch/agent.sock", agent), ("listen 8080", f"listen unix:{listen}"))
        temporary = "\n".join(
            f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = Path(directory, "nginx.conf")
        config.write_text(
            f"user root;\npid {directory}/nginx.pid;\nerror_log {directory}/log;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}\n{text}\n}}\n"
        )
        arguments = [program, "-c", config, "-e", f"{directory}/log"]
        run(*arguments, "-t")
        return process(*arguments, "-g", "daemon off;")

    def haproxy(self, directory, agent, listen):
        program = tool("haproxy", "apt-get install haproxy")
        lua, config = Path(directory, "dispatch.lua"), Path(directory, "haproxy.cfg")
        lua.write_text(put(recipe("lua"), ("/run/dispatch/agent.sock", agent)))
        config.write_text(
            put(recipe("haproxy"), ("/etc/haproxy/dispatch.lua", lua), ("bind :8080", f"bind unix@{listen}"))
        )
        run(program, "-c", "-f", config)
        return process(program, "-db", "-f", config)

    def test_every_request_through_nginx_is_at_the_owner_and_failures_are_as_described(self):
        self.proxied(self.nginx, refused=502)

    def test_every_request_through_haproxy_is_at_the_owner_and_failures_are_as_described(self):
        self.proxied(self.haproxy, refused=503)

    def proxied(self, proxy, refused):
        with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
            listen = f"{directory}/proxy.sock"
            cluster_stack = contextlib.ExitStack()
            stack.push(cluster_stack)
            cluster = cluster_stack.enter_context(agents(3))
            stack.enter_context(proxy(directory, cluster.sockets[0], listen))
            connection = UnixConnection(listen)
            stack.callback(connection.close)

            def ask(key, method="GET", body=None, connection=connection):
                path = "/" if key is None else f"/?room={urllib.parse.quote(key, safe='')}"
                connection.request(method, path, body)
                answer = connection.getresponse()
                return answer.status, answer.headers, answer.read()

            eventually("the proxy listens", connection.connect)
            self.assertEqual(ask(None)[0], 400)
            self.unavailable(ask("room-7"))

            servers = {}
            for name in ("chat-1", "chat-2", "chat-3"):
                address, asked = stack.enter_context(instance(name))
                servers[name] = asked
                cluster.put(name, "chat", address)
            self.at_their_owners(cluster, ask, servers)
            # What is sent comes through, once, and so does what is answered.
            before = sum(map(len, servers.values()))
            status, _, said = ask("room-7", "POST", b"x" * 300_000)
            self.assertEqual((status, len(said)), (200, 300_000))
            self.assertEqual(sum(map(len, servers.values())), before + 1)

            state = {"state": "offline", "reason": "a test"}
            cluster.ok("POST", "/v1/endpoints/chat-2/state", state)
            answered = self.at_their_owners(cluster, ask, servers)
            self.assertEqual(answered, {"chat-1", "chat-3"})
            for name in ("chat-1", "chat-3"):
                cluster.ok("POST", f"/v1/endpoints/{name}/state", state)
            self.unavailable(ask("room-7"))

            # Nobody listens where the owner is said to be.
            with socket.socket() as nobody:
                nobody.bind(("127.0.0.1", 0))
                cluster.put("gone", "chat", f"http://127.0.0.1:{nobody.getsockname()[1]}")
                self.assertEqual(ask("room-7")[0], refused)
            cluster.ok("DELETE", "/v1/endpoints/gone")
            with hangs_up() as address:
                cluster.put("hangs-up", "chat", address)
                # On a connection of its own: on one that had a request before, HAProxy hangs up, too.
                with contextlib.closing(UnixConnection(listen)) as fresh:
                    self.assertEqual(ask("room-7", connection=fresh)[0], 502)
            cluster_stack.close()
            self.unavailable(ask("room-7"))

    def at_their_owners(self, cluster, ask, servers):
        """Asks for each key; says who answered. Another agent than the proxy's says who should."""
        all_keys = keys()
        expected = eventually("all agents agree", lambda: self.owners(cluster, all_keys))
        answered = set()
        for key, owner in zip(all_keys, expected):
            status, headers, _ = ask(key)
            self.assertEqual((status, headers["X-Instance"]), (200, owner), repr(key))
            answered.add(owner)
        self.assertEqual(len(all_keys), REQUESTS)
        return answered

    def owners(self, cluster, all_keys):
        each = []
        for agent in range(3):
            told = cluster.ok("POST", "/v1/types/chat/owners", {"keys": all_keys}, agent)
            each.append([told["owners"][at]["name"] for at in told["of_keys"]])
        assert each[0] == each[1] == each[2], "agents differ"
        return each[1]

    def unavailable(self, answer):
        status, headers, _ = answer
        self.assertEqual((status, headers["Retry-After"]), (503, "1"))
