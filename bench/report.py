"""Prints the results as tables: the measured value, the target, and whether it was met."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_CONTENDERS = {
    "load": "CHM, first load",
    "replay": "CHM, identical replay",
    "changed": "CHM, replay with 10 % changed",
    "landed": "CHM, first load, landed",
    "copy": "plain COPY, ready rows",
    "per_row": "row by row, ORM",
}


def show(results: Mapping[str, Any], console: Console) -> None:
    """Print rates, ratios and sync times."""
    loading, sync = results["loading"], results["sync_10k"]
    rates = _table(f"{loading['runs']:,} runs, rows/s", "median", "smallest", "largest", "WAL bytes/row")
    for name, label in _CONTENDERS.items():
        rate = loading["rows_per_second"][name]
        note = f" ({loading['per_row_runs']:,})" if name == "per_row" else ""
        shown = (f"{rate[key]:,.0f}" for key in ("median", "min", "max"))
        rates.add_row(label + note, *shown, f"{loading['wal_bytes_per_row'][name]:,.0f}")
    console.print(rates)
    targets = _table("Targets", "measured", "target", "")
    for name, value, wanted, met in _targets(results):
        targets.add_row(name, f"{value:,.4g}", wanted, "[green]met[/]" if met else "[bold red]missed[/]")
    console.print(targets)
    syncs = _table(
        f"Sync of {sync['pipelines']:,} pipelines, seconds", "CHM", "smallest", "largest", "partner", "fetched"
    )
    for name, label in (("news", f"{sync['new_runs']:,} new runs"), ("no_news", "no news")):
        own, theirs, fetched = (sync[name][key] for key in ("own_seconds", "partner_seconds", "fetched"))
        shown = (f"{own[key]:.2f}" for key in ("median", "min", "max"))
        syncs.add_row(label, *shown, f"{theirs['median']:.2f}", f"{fetched['median']:,.0f}")
    console.print(syncs)


def _targets(results: Mapping[str, Any]) -> list[tuple[str, float, str, bool]]:
    ratios = results["ratios"]
    at_least = {"load_vs_copy": 0.75, "load_vs_per_row": 20.0, "replay_vs_load": 1.5}
    rows = [(name, ratios[name], f">= {wanted:g}", ratios[name] >= wanted) for name, wanted in at_least.items()]
    share, dead = ratios["replay_wal_share"], results["replay_dead_tuples"]
    own = results["sync_10k"]["news"]["own_seconds"]["median"]
    return [
        *rows,
        ("replay_wal_share", share, "< 0.01", share < 0.01),
        ("replay_dead_tuples", dead, "0", dead == 0),
        ("sync_10k, own seconds", own, "< 5", own < 5),
    ]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table
