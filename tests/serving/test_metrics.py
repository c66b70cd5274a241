"""The plugin's numbers in files: those of all processes are added up, with those of vLLM's own way, too."""

import os
from unittest import mock

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from tiny import tiny_config

from serving_plt.vllm import metrics
from serving_plt.vllm.metrics import OF_OURS, OF_VLLM, Metrics, show_metrics


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A process that has shown nothing, and is the first of those that share heads."""
    monkeypatch.setattr(metrics, "FOLDERS", [])
    monkeypatch.delenv(OF_OURS, raising=False)
    monkeypatch.delenv(OF_VLLM, raising=False)
    monkeypatch.setattr(metrics, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(metrics, "REGISTRY", CollectorRegistry())


def page(registry: CollectorRegistry | None = None) -> dict[str, float]:
    """The plugin's numbers on the page of a registry, if not on the process's own."""
    lines = generate_latest(registry or metrics.REGISTRY).decode().splitlines()
    lines = [line.split(" ") for line in lines if line.startswith("plt_")]
    return {name: float(value) for name, value in lines}


def in_process(number: int):
    return mock.patch.object(os, "getpid", lambda: number)


def test_the_page_adds_up_what_processes_count():
    show_metrics()
    show_metrics()  # vLLM may read settings twice
    config = tiny_config(num_loops=3, sliding_window=4)
    with in_process(1):
        Metrics(config).count_pruned(5)
    with in_process(2):
        second = Metrics(config)
        second.count_pruned(7)
        Metrics(config).count_pruned(30)  # an engine after another
        second.count_pruned(100)
    assert page() == {"plt_loops": 3, "plt_window": 4, "plt_pruned_positions_total": 142}


def test_processes_that_share_heads_count_once(monkeypatch):
    show_metrics()
    Metrics(tiny_config()).count_pruned(5)
    monkeypatch.setattr(metrics, "get_tensor_model_parallel_rank", lambda: 1)
    with in_process(2):
        Metrics(tiny_config()).count_pruned(5)
    assert page()["plt_pruned_positions_total"] == 5


@pytest.mark.parametrize("fields", [{"num_loops": 1}, {"loop_attention": "shared"}, {"loop_attention": "own"}])
def test_there_is_no_window_where_no_loop_has_one(fields):
    show_metrics()
    Metrics(tiny_config(**fields))
    assert page().keys() == {"plt_loops", "plt_pruned_positions_total"}


def test_with_several_servers_the_numbers_lie_among_those_of_vllm(tmp_path, monkeypatch):
    monkeypatch.setenv(OF_VLLM, str(tmp_path))
    show_metrics()
    assert OF_OURS not in os.environ and not metrics.FOLDERS
    Metrics(tiny_config()).count_pruned(5)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    assert page(registry)["plt_pruned_positions_total"] == 5


def test_a_server_that_another_process_of_a_server_starts_shows_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv(OF_OURS, str(tmp_path))
    show_metrics()
    assert os.environ[OF_OURS] != str(tmp_path)
    Metrics(tiny_config()).count_pruned(5)
    assert page()["plt_pruned_positions_total"] == 5


def test_a_process_without_a_server_warns_and_runs(monkeypatch):
    said = []
    monkeypatch.setattr(metrics.logger, "warning", lambda *message: said.append(message[0] % message[1:]))
    Metrics(tiny_config()).count_pruned(5)
    assert said == ["The page /metrics has no numbers of the plugin: `PLT_METRICS_DIR` is not set in this process."]
