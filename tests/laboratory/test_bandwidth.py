"""The bandwidth of memory is that of the bytes that a sample reads."""

import itertools

import pytest
import torch

from laboratory.costs.bandwidth import READ, READS, read_bandwidth, reader

CPU = torch.device("cpu")


def test_bandwidth_is_the_bytes_of_a_read_over_the_median_of_its_times():
    """Every second call of the clock ends a read; reads take 1, 2, 3... seconds, the first of which does not count."""
    durations = itertools.chain.from_iterable((0, seconds) for seconds in itertools.count(1))
    now = itertools.accumulate(durations)
    assert read_bandwidth(CPU, clock=lambda: next(now)) == pytest.approx(READ / (1 + (READS + 1) / 2))


def test_a_read_is_of_that_many_bytes_which_no_cache_holds():
    sample = reader(CPU)
    assert sample.__self__.nbytes == READ >= 2**28
    assert sample().item() == 1


def test_no_machine_reads_faster_than_memory_does():
    assert 1e8 < read_bandwidth(CPU) < 2e12


def test_the_device_is_that_which_was_asked_for():
    assert reader(torch.device("meta"))().device.type == "meta"
