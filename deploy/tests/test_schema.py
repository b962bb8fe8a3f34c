"""Schemathesis asks a running agent whatever its description allows, and what it does not: no answer may be off it.

REQUESTS says how many requests it makes at least (10,000; fewer for a quick look).
"""

import json
import os
import tempfile
import unittest
from pathlib import Path

from agents import agents, command, environment, run, tool

# What an answer is held to. Which requests are refused is the agent's own matter, as its description is wider than its rules:
# an address that is none is a string all the same.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
]


class Schema(unittest.TestCase):
    def test_no_answer_is_off_the_schema(self):
        schemathesis = tool("schemathesis", "pip install schemathesis")
        wanted = int(os.environ.get("REQUESTS", "10000"))
        with tempfile.TemporaryDirectory() as directory:
            made = run(command(), "token", "root", "operate", env=environment())
            token, line = (
                next(text.removeprefix(start) for text in made.splitlines() if text.startswith(start)).strip()
                for start in ("token ", "line ")
            )
            tokens = Path(directory, "tokens")
            tokens.write_text(line + "\n")
            tokens.chmod(0o600)
            with agents(3, "agent.api.tcp=127.0.0.1:0", f"agent.api.tokens={tokens}") as cluster:
                cluster.put("chat-1", "chat", "http://127.0.0.1:9")
                events = Path(directory, "events.ndjson")
                config = Path(directory, "schemathesis.toml")
                # 503 is an answer: nobody owns the key, as everybody is offline.
                config.write_text("[checks.not_a_server_error]\nexpected-statuses = ['2xx', '3xx', '4xx', '503']\n")
                operations = sum(len(path) for path in cluster.ok("GET", "/openapi.json")["paths"].values())
                run(
                    schemathesis,
                    f"--config-file={config}",
                    "run",
                    f"http://{cluster.api[0]}/openapi.json",
                    f"--header=Authorization: Bearer {token}",
                    f"--max-examples={-(-wanted // operations)}",
                    f"--checks={','.join(CHECKS)}",
                    "--phases=examples,coverage,fuzzing",
                    "--continue-on-failure",
                    "--request-timeout=20",
                    "--report=ndjson",
                    f"--report-ndjson-path={events}",
                    cwd=directory,
                )
                requests, statuses = made_of(events)
                print(f"{requests} requests, by status {dict(sorted(statuses.items()))}")
                self.assertGreaterEqual(requests, wanted)
                # All three live, and still agree.
                for agent in range(3):
                    self.assertTrue(cluster.ok("GET", "/v1/node", agent=agent)["ready"])
                self.assertTrue(cluster.ok("GET", "/v1/verify?wait=10s")["agree"])


def made_of(events):
    """How many requests were made, and how they were answered."""
    requests, statuses = 0, {}

    def look(value):
        nonlocal requests
        if isinstance(value, dict):
            response = value.get("response")
            if isinstance(response, dict) and "status_code" in response:
                requests += 1
                status = response["status_code"]
                statuses[status] = statuses.get(status, 0) + 1
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    with events.open() as lines:
        for line in lines:
            look(json.loads(line))
    return requests, statuses
