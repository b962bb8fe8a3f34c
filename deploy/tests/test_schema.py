"""Schemathesis asks a running agent whatever its description allows, and what it does not: no answer may be off it.

REQUESTS says how many requests it makes at least (10,000; fewer for a quick look).
"""

import json
import os
import tempfile
import unittest
from pathlib import Path

from agents import agents, command, environment, run, tool

# What an answer is not held to: which requests are refused is the agent's own matter, as its rules are narrower than its
# description (an address that is none is a string all the same), and what one request leaves is no promise to the next.
NOT_CHECKED = [
    "positive_data_acceptance",
    "negative_data_rejection",
    "missing_required_header",
    "use_after_free",
    "ensure_resource_availability",
    "object_level_authorization",
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
                paths = cluster.ok("GET", "/openapi.json")["paths"].values()
                operations = sum(len(set(path) - {"parameters"}) for path in paths)
                examples = -(-wanted // operations // 2)
                requests, statuses = 0, {}
                # Once whatever the description allows; and once of what is there, or most would end at a type that is not.
                for name, there, phases in (
                    ("anything", "", "examples,coverage,fuzzing"),
                    ("there", "[parameters]\n'path.type' = 'chat'\n'path.id' = 'chat-1'\n'path.name' = 'b'\n", "fuzzing"),
                ):
                    events = Path(directory, f"{name}.ndjson")
                    config = Path(directory, f"{name}.toml")
                    # 503 is an answer: nobody owns the key, as everybody is offline.
                    checks = "[checks]\nnot_a_server_error.expected-statuses = ['2xx', '3xx', '4xx', '503']\n"
                    checks += "".join(f"{check}.enabled = false\n" for check in NOT_CHECKED)
                    # It takes any method, which a description has no way to say.
                    route = "[[operations]]\ninclude-path = '/v1/route'\nchecks.unsupported_method.enabled = false\n"
                    config.write_text(there + checks + route)
                    run(
                        schemathesis,
                        f"--config-file={config}",
                        "run",
                        f"http://{cluster.api[0]}/openapi.json",
                        f"--header=Authorization: Bearer {token}",
                        f"--max-examples={examples}",
                        f"--phases={phases}",
                        "--continue-on-failure",
                        "--request-timeout=70",
                        "--report=ndjson",
                        f"--report-ndjson-path={events}",
                        cwd=directory,
                    )
                    made, answers = made_of(events)
                    requests += made
                    for status, count in answers.items():
                        statuses[status] = statuses.get(status, 0) + count
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
