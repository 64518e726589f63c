"""The load and fault runs, at a size for tests; see ``xrouter bench serve`` for the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("litellm")
pytest.importorskip("fastapi")

from xrouter.catalog import Catalog
from xrouter.serving.accounts import pico
from xrouter.serving.bench import BenchOptions, Report, bench, quantile, true_costs


def test_true_costs_are_summed_by_the_marker_of_each_request() -> None:
    catalog = Catalog.load()

    def entry(marker: str, tokens: int) -> dict[str, object]:
        messages = [{"role": "user", "content": f"<{marker}> hello"}]
        return {
            "model": "gpt-4o",
            "request": {"messages": messages},
            "prompt_tokens": 0,
            "output_tokens": tokens,
            "cached_tokens": 0,
        }

    truth = true_costs([entry("a", 1), entry("b", 2), entry("a", 3)], catalog)
    token = pico(catalog["gpt-4o"].cost(0, 1))
    assert truth == {"a": 4 * token, "b": 2 * token}


def test_quantiles_are_values_that_occurred() -> None:
    assert [quantile([3.0, 1.0, 2.0], q) for q in (0.0, 0.5, 1.0)] == [1.0, 2.0, 3.0]


def test_the_report_says_where_its_numbers_come_from() -> None:
    report = Report()
    report.add("streams", lost=0)
    head, row = report.to_csv(BenchOptions()).splitlines()
    assert head.startswith("scenario,metric,value,world,cpus,commit")
    assert row.startswith("streams,lost,0,live over a fake provider")


def test_an_unknown_scenario_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="scenario='storm'"):
        bench(["storm"], BenchOptions(), out=None, say=print)


@pytest.mark.slow
def test_no_stream_is_lost_and_every_faulty_request_is_billed_right(tmp_path: Path) -> None:
    options = BenchOptions(streams=60, requests=120, concurrency=8, minutes=0.2)
    report = bench(["streams", "faults", "memory"], options, out=tmp_path / "bench.csv", say=print)
    assert report.failures == []
    assert (tmp_path / "bench.csv").read_text().count("\n") > 20
