"""The files of deploy/, as the tools that they are for see them."""

import json
import re
import subprocess
import tempfile
import unittest
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

from agents import ROOT, agents, command, environment, eventually, process, run, tool

DEPLOY = ROOT / "deploy"
PROMETHEUS = "apt-get install prometheus"


def board_queries():
    """Every query of the board, with the title of its panel."""
    board = json.loads((DEPLOY / "grafana.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def alerts():
    """Every alert."""
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]:
        yield from group["rules"]


def families(metrics):
    """The names of the metrics of an exposition."""
    return set(re.findall(r"^# TYPE (\S+)", metrics, re.M))


class Alerts(unittest.TestCase):
    def test_promtool_accepts_the_rules(self):
        promtool = tool("promtool", PROMETHEUS)
        run(promtool, "check", "rules", "--lint=all", "--lint-fatal", DEPLOY / "alerts.yml")

    def test_each_alert_fires_where_it_should_and_not_where_it_should_not(self):
        promtool = tool("promtool", PROMETHEUS)
        tests = DEPLOY / "tests/alerts.test.yml"
        run(promtool, "test", "rules", tests)
        seen = {}
        for test in yaml.safe_load(tests.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                seen.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
        self.assertEqual(seen, {rule["alert"]: {True, False} for rule in alerts()})

    def test_an_alert_names_a_part_of_the_command_that_there_is(self):
        for rule in alerts():
            words = re.sub(r"{{.*?}}", "x", rule["annotations"]["action"]).split()
            self.assertEqual(words[0], "dispatch")
            run(command(), words[1], "--help")


class Metrics(unittest.TestCase):
    def test_promtool_accepts_what_an_agent_says_and_a_prometheus_scrapes_it_for_the_alerts_and_the_board(self):
        promtool, prometheus = tool("promtool", PROMETHEUS), tool("prometheus", PROMETHEUS)
        with agents(3, "agent.api.tcp=127.0.0.1:0") as cluster, tempfile.TemporaryDirectory() as directory:
            cluster.put("chat-1", "chat", "http://127.0.0.1:9")
            # Names that an exposition has to escape, and one that is offline by its check.
            cluster.put("odd", 'a "quoted\\type"', "http://127.0.0.1:1", check={"tcp": True, "every": "1s"})
            metrics = cluster.metrics()
            run_with_input(metrics, promtool, "check", "metrics")
            known = families(metrics)
            for where, query in [*board_queries(), *((rule["alert"], rule["expr"]) for rule in alerts())]:
                named = set(re.findall(r"dispatch_\w+", query))
                self.assertTrue(named and named <= known, f"{where}: {named - known}")
            config = {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(DEPLOY / "alerts.yml")],
                "scrape_configs": [
                    {"job_name": "dispatch", "static_configs": [{"targets": cluster.ops}]},
                    # What registered itself under a type is scraped, too, by the addresses that an agent names.
                    {
                        "job_name": "chat",
                        "http_sd_configs": [
                            {"url": f"http://{cluster.api[0]}/v1/sd/prometheus?type=chat", "refresh_interval": "1s"}
                        ],
                    },
                ],
            }
            file = Path(directory, "prometheus.yml")
            file.write_text(yaml.safe_dump(config))
            run(promtool, "check", "config", file)
            self.scraped(prometheus, file, cluster)

    def scraped(self, prometheus, file, cluster):
        with (
            open(file.with_suffix(".log"), "w+") as log,
            process(
                prometheus,
                f"--config.file={file}",
                f"--storage.tsdb.path={file.parent}/data",
                "--web.listen-address=127.0.0.1:0",
                stderr=log,
            ),
        ):
            address = eventually("Prometheus listens", lambda: listening(file.with_suffix(".log")))

            def ask(path, **query):
                url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
                with urllib.request.urlopen(url, timeout=10) as answer:
                    return json.load(answer)["data"]

            def all_up():
                up = ask("query", query='up{job="dispatch"}')["result"]
                assert [sample["value"][1] for sample in up] == ["1"] * 3, up

            eventually("all three are scraped", all_up)

            def found():
                targets = [target["scrapeUrl"] for target in ask("targets")["activeTargets"]]
                assert "http://127.0.0.1:9/metrics" in targets, targets

            eventually("what is registered is scraped", found)
            groups = ask("rules")["groups"]
            self.assertEqual(sum(len(group["rules"]) for group in groups), len(list(alerts())))
            for title, query in board_queries():

                def answered():
                    assert ask("query", query=query)["result"], f"{title}: nothing for {query}"

                eventually(f"the panel {title!r} shows something", answered)
            self.assertEqual(ask("query", query="max(dispatch_members{state='up'})")["result"][0]["value"][1], "3")


def run_with_input(text, *arguments):
    """Runs a tool that reads its standard input."""
    done = subprocess.run(arguments, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    # Warnings are failures, too.
    if done.returncode != 0 or done.stdout.strip():
        raise AssertionError(f"exit {done.returncode}\n{done.stdout}")


def listening(log):
    """The address that Prometheus says it listens at."""
    found = re.search(r"Listening on.*address=(\S+:\d+)", log.read_text())
    assert found and not found[1].endswith(":0"), log.read_text()[-500:]
    return found[1]


class Unit(unittest.TestCase):
    def test_systemd_accepts_the_unit(self):
        analyze = tool("systemd-analyze", "apt-get install systemd")
        text = (DEPLOY / "dispatch-agent.service").read_text()
        with tempfile.TemporaryDirectory() as directory:
            # It is looked whether the program is there: where it is here stands for where it will be.
            unit = Path(directory, "dispatch-agent.service")
            unit.write_text(text.replace("/usr/local/bin/dispatch", command()))
            self.assertNotEqual(unit.read_text(), text)
            said = run(analyze, "verify", "--man=no", "--recursive-errors=no", unit)
            self.assertEqual(said.strip(), "")
            # Of 10, which is no confinement at all; services that need the network get to about 4 at most.
            run(analyze, "security", "--offline=true", "--threshold=40", unit)


class Kubernetes(unittest.TestCase):
    def test_the_manifests_fit_their_schemas(self):
        validate = tool("kubernetes-validate", "pip install kubernetes-validate")
        run(validate, "--strict", DEPLOY / "kubernetes.yml")

    def test_their_settings_and_commands_are_those_that_there_are(self):
        for document in yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text()):
            if document["kind"] == "Service":
                continue
            for container in document["spec"]["template"]["spec"]["containers"]:
                env = {one["name"]: one.get("value", "x") for one in container["env"]}
                env = {name: value.replace("$(POD_IP)", "10.0.0.7") for name, value in env.items()}
                # An unknown setting, or a value that is none, is an error.
                shown = run(command(), "config", "show", "--origin", env={**environment(), **env})
                self.assertEqual(shown.count("DISPATCH_"), sum(name.startswith("DISPATCH_") for name in env))
                run(command(), *container["args"], "--help")
                program, *arguments = container["lifecycle"]["preStop"]["exec"]["command"]
                self.assertEqual(program, "dispatch")
                with agents(1) as cluster:
                    said = run(command(), *arguments, "--addr", f"unix:{cluster.sockets[0]}", env=environment())
                    self.assertIn("draining", said)
                    connection_probes(self, container, cluster)


def connection_probes(test, container, cluster):
    """Every path that is probed is one of the ops listener."""
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = container[probe]["httpGet"]["path"]
        with urllib.request.urlopen(f"http://{cluster.ops[0]}{path}", timeout=10) as answer:
            test.assertEqual(answer.status, 200, probe)
