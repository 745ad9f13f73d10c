"""What is asked of Prometheus: every metric is one that the endpoint has, and the alerts come when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from coordinator.metrics.catalogue import METRICS, series_names
from tests.deploy.manifests import one
from tests.deploy.tools import refuse, require_tool

RULES_TEST = Path(__file__).with_name("alerts_test.yaml")
LABELS_OF_SCRAPES = {"namespace", "pod", "le"}
"""Added by Prometheus, or by the format."""


def alert_queries() -> Iterator[str]:
    for group in one("monitoring", "PrometheusRule")["spec"]["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def dashboard_queries() -> Iterator[str]:
    """With numbers in the places of Grafana's variables."""
    dashboard = json.loads(one("monitoring", "ConfigMap", "qspec-dashboard")["data"]["dashboard.json"])
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield re.sub(r"\$(namespace|pod)", ".*", target["expr"].replace("$__rate_interval", "5m"))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield re.sub(r"\$\w+", ".*", re.sub(r"label_values\((.*), \w+\)", r"\1", variable["query"]))


def autoscaler_metrics() -> list[str]:
    return [each["pods"]["metric"]["name"] for each in one("autoscaling", "HorizontalPodAutoscaler")["spec"]["metrics"]]


QUERIES = {"alerts": alert_queries, "dashboard": dashboard_queries}


@pytest.mark.parametrize("source", QUERIES)
def test_every_metric_that_is_asked_for_exists(source: str) -> None:
    queries = list(QUERIES[source]())
    assert len(queries) > 9
    for query in queries:
        names = set(re.findall(r"qspec_\w+", query))
        assert names and names <= series_names(), query


@pytest.mark.parametrize("source", QUERIES)
def test_every_label_that_is_asked_for_exists(source: str) -> None:
    known = {label for spec in METRICS for label in spec.labels} | LABELS_OF_SCRAPES
    for query in QUERIES[source]():
        groups = re.findall(r"(?:by|ignoring) ?\(([^)]*)\)", query)
        grouped = {name.strip() for names in groups for name in names.split(",")}
        for selected, selector in re.findall(r"(qspec_\w+)\{([^}]*)\}", query):
            spec = next(spec for spec in METRICS if selected.removesuffix("_bucket").startswith(spec.name))
            labels = set(re.findall(r"(\w+)=", selector))
            assert labels <= set(spec.labels) | LABELS_OF_SCRAPES, query
        assert grouped <= known, query


@pytest.mark.parametrize("source", QUERIES)
def test_every_query_is_promql(source: str) -> None:
    try:
        import promql_parser
    except ImportError:
        refuse("promql-parser is not installed: `make deploy-tools` installs it")
        raise
    for query in QUERIES[source]():
        promql_parser.parse(query)  # raises ValueError


def test_the_dashboard_shows_every_metric() -> None:
    """But for those that say what runs, and what the server was given."""
    shown = {name for query in dashboard_queries() for name in re.findall(r"qspec_\w+", query)}
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    unshown = {spec.name for spec in METRICS} - stems - shown
    assert unshown == {
        "qspec_stack_info", "qspec_max_requests_waiting", "qspec_prefill_tokens_total", "qspec_kv_cache_blocks",
        "qspec_worker_attached"}


def test_the_autoscaler_asks_for_gauges_that_exist() -> None:
    gauges = {spec.name for spec in METRICS if spec.kind.value == "gauge"}
    assert autoscaler_metrics() == ["qspec_num_requests_waiting", "qspec_num_requests_running"]
    assert set(autoscaler_metrics()) <= gauges
    assert one("autoscaling", "ServiceMonitor")  # somebody has to scrape them


def test_the_monitor_finds_one_service_and_its_port() -> None:
    specification = one("monitoring", "ServiceMonitor")["spec"]
    (endpoint,) = specification["endpoints"]
    assert endpoint["path"] == "/metrics"
    wanted = specification["selector"]["matchLabels"].items()
    found = [
        name for name in ("qspec", "qspec-pods")
        if wanted <= one("monitoring", "Service", name)["metadata"]["labels"].items()
        and endpoint["port"] in [port["name"] for port in one("monitoring", "Service", name)["spec"]["ports"]]]
    assert found == ["qspec-pods"]


def test_alerts_come_when_they_should(tmp_path: Path) -> None:
    promtool = require_tool("promtool")
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(one("monitoring", "PrometheusRule")["spec"]), encoding="utf-8")
    shutil.copy(RULES_TEST, tmp_path / "test.yaml")
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "test.yaml"]):
        done = subprocess.run(
            [promtool, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
