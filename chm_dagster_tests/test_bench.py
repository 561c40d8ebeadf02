"""`make bench` works end to end. These tests do not look at speed, because machines differ."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from bench.__main__ import main
from bench.loading import Arena
from bench.queries import QUICK as QUICK_LEDGER
from bench.sizes import QUICK

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("bench") / "home" / "bench.json"
    assert main(["--quick", "--output", str(output)]) == 0
    assert [path.name for path in output.parent.iterdir()] == ["bench.json"]
    found: dict[str, Any] = orjson.loads(output.read_bytes())
    return found


def test_every_figure_is_present_and_positive(results: dict[str, Any]) -> None:
    assert set(results["ratios"]) >= {"load_vs_copy", "load_vs_per_row", "replay_vs_load", "replay_wal_share"}
    rates = results["loading"]["rows_per_second"]
    assert set(rates) == {"load", "replay", "changed", "landed", "copy", "per_row"}
    figures = [*results["ratios"].values(), *(rate["median"] for rate in rates.values())]
    assert all(figure > 0 for figure in figures)
    assert all(len(rate["rounds"]) == QUICK.rounds for rate in rates.values())
    assert results["machine"]["postgres"]["fsync"] == "on"
    assert results["queries"]
    alerts = results["alerts"]
    assert alerts["rules"] > QUICK_LEDGER.pipelines
    assert alerts["rows_read_by_an_evaluation"] > 0
    assert all(page["bytes"] for page in results["board"].values())
    for name in ("evaluation", "back-test of 30 days"):
        assert 0 < alerts[name]["p50_seconds"] <= alerts[name]["p95_seconds"]
    report = results["client_report"]
    assert abs(report["runs_of_two_weeks"] - report["pipelines"] * 2 * 7 * 24) <= report["pipelines"]
    assert set(report["seconds"]) == {"build", *report["bytes"]}
    assert all(0 < one["min"] <= one["median"] <= one["max"] for one in report["seconds"].values())


def test_a_replay_leaves_no_dead_rows_and_hardly_any_wal(results: dict[str, Any]) -> None:
    assert results["replay_dead_tuples"] == 0
    wal = results["loading"]["wal_bytes_per_row"]
    assert 0 < wal["replay"] < wal["changed"] < wal["load"]


def test_a_sync_with_news_is_followed_by_one_without(results: dict[str, Any]) -> None:
    sync = results["sync_10k"]
    assert (sync["pipelines"], sync["new_runs"]) == (QUICK.sync_pipelines, QUICK.sync_news)
    assert sync["first_load"]["fetched"] == QUICK.sync_pipelines * QUICK.sync_runs_per_pipeline
    for kind in ("news", "no_news"):
        assert sync[kind]["own_seconds"]["median"] > 0
        assert sync[kind]["partner_seconds"]["median"] > 0


def test_work_that_was_not_done_is_an_error_instead_of_a_figure(database_url: str, tmp_path: Path) -> None:
    arena = Arena(database_url, QUICK, tmp_path)
    arena.material.first.bodies[0] = b'{"runs": [], "next_cursor": null}'  # type: ignore[index]
    with pytest.raises(AssertionError, match="expected"):
        arena.chm()
    arena.close()


def test_an_unusable_folder_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["--quick", "--output", str(tmp_path / "file" / "bench.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
