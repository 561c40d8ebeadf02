"""A report in HTML, PDF, CSV and JSON: hostile names stay text, what is unknown reads unknown, and one page is one page."""

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from chm_dagster.domain.alerts import RunFact
from chm_dagster.domain.reports import DayFigures, Report, issue, revised
from chm_dagster.domain.service import Tally
from chm_dagster.presentation.report.content import content, day_cell, percent
from chm_dagster.presentation.report.page import as_html, as_pdf
from chm_dagster.presentation.report.tables import COLUMNS, as_csv, as_json
from chm_dagster_tests.unit.test_reports import ADDED, F, Period, S, at, daily, made, run, watched

HOSTILE = [
    "<script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    '=HYPERLINK("https://evil.example","x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1+1)",
    "{{ 7*7 }} {% raw %}",
    '#panic("x") $ x $ *bold* `raw` @ref <label> \\ [ ] // /* ',
    "\x1b[31mred\x07",
    "right\u202eto left",
    "a, \"b\"; 'c'",
    "x" * 180,
]


def report(*names: str, client: str = "Acme") -> Report:
    pipelines = []
    for number, name in enumerate(names):
        one = watched(f"p{number:02}")
        runs = [*daily(3), run(at(18, number / 4), F, run=f"bad{number}"), run(at(18, number / 4 + 1))]
        pipelines.append((dataclasses.replace(one, name=name), runs))
    found = made(*pipelines)
    incidents = tuple(msgspec.structs.replace(i, error=f"error of {i.pipeline_name}") for i in found.incidents)
    return msgspec.structs.replace(found, client_name=client, incidents=incidents)


def text_of(pdf: bytes, folder: Path) -> str:
    """The text of a PDF as a reader extracts it."""
    (folder / "report.pdf").write_bytes(pdf)
    command = ["pdftotext", "-layout", str(folder / "report.pdf"), "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def pages(pdf: bytes) -> int:
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


class Page(HTMLParser):
    """Collects elements and texts."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_in_html(name: str) -> None:
    page = Page(as_html(report(name, client=name)))
    assert not {"script", "img", "iframe", "link", "form", "a"} & {tag for tag, _ in page.elements}
    assert not [attrs for _, attrs in page.elements if any(key.startswith("on") for key in attrs)]
    assert content(report(name, client=name)).client in page.texts


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_in_csv(name: str) -> None:
    [head, row] = list(csv.reader(io.StringIO(as_csv(report(name)).decode())))
    assert head == list(COLUMNS)
    shown = row[COLUMNS.index("pipeline_name")]
    assert shown.removeprefix("'") == name
    assert shown[0] not in "=+-@\t\r"


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_themselves_in_json(name: str) -> None:
    found = json.loads(as_json(report(name, client=name)))
    assert (found["client_name"], found["pipelines"][0]["name"]) == (name, name)


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs pdftotext of poppler-utils")
def test_names_are_text_in_pdf(tmp_path: Path) -> None:
    found = text_of(as_pdf(report(*HOSTILE[:6], client=HOSTILE[7])), tmp_path)
    for name in ("<script>alert(1)</script>", "=HYPERLINK", "@SUM(1+1)", '#panic("x") $ x $ *bold* `raw` @ref <label>'):
        assert name in found


@pytest.mark.parametrize("name", HOSTILE)
def test_every_name_makes_a_pdf(name: str) -> None:
    assert as_pdf(report(name, client=name)).startswith(b"%PDF-")


def test_the_page_loads_nothing() -> None:
    page = Page(as_html(report("Orders")))
    assert not [attrs for _, attrs in page.elements if {"src", "href", "action", "srcset"} & set(attrs)]
    assert b"url(" not in as_html(report("Orders"))
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_page_says_in_words_what_its_colours_say() -> None:
    html = as_html(report("Orders")).decode()
    assert "Wed 18: 1 failed" in html and "Mon 16: all well" in html
    page = Page(as_html(report("Orders")))
    assert [attrs["lang"] for tag, attrs in page.elements if tag == "html"] == ["en"]
    assert [tag for tag, _ in page.elements if tag in ("h1", "main", "header", "footer")] == [
        "header",
        "h1",
        "main",
        "footer",
    ]
    assert all(attrs.get("scope") for tag, attrs in page.elements if tag == "th")


@pytest.mark.parametrize("text", ["2026-W47", "2026-11"])
def test_a_large_client_fits_on_one_page(text: str) -> None:
    period = Period.read(text)
    pipelines = []
    for number in range(60):
        name = f"{'A long name of a pipeline ' * 3}{number}"
        runs = [*daily(3, last=29), *[run(at(day, 4 + number / 100), F, run=f"{day}-{number}") for day in (17, 19, 21)]]
        pipelines.append((dataclasses.replace(watched(f"p{number:02}", cron="0 3 * * *"), name=name), runs))
    found = made(*pipelines, (watched("blind", known=None), []), period=period, now=at(30) + (at(30) - at(27)))
    errors = tuple(msgspec.structs.replace(i, error="psycopg.OperationalError: " + "x " * 100) for i in found.incidents)
    found = msgspec.structs.replace(found, incidents=errors, client_name="The Very Long Name of a Customer " * 4)
    last = msgspec.structs.replace(
        issue(found), fingerprint="", figures=msgspec.structs.replace(found.figures, runs=1, success_rate=0.1)
    )
    assert pages(as_pdf(revised(found, last))) == 1


def crowd(pipelines: int, failures: int, period: Period) -> Report:
    """Many pipelines that fail many times a day, all month."""
    days = [at(day, 24 * number / failures) for day in range(1, 31) for number in range(failures)]
    runs = [run(start, F, minutes=1, run=start.isoformat()) for start in days]
    now = at(30) + (at(30) - at(27))
    return made(
        *((watched(f"p{number}", known=(ADDED, now)), runs) for number in range(pipelines)), period=period, now=now
    )


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs pdftotext of poppler-utils")
def test_the_days_of_a_month_with_thousands_of_failures_stay_in_their_cells(tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(as_pdf(crowd(60, 24, Period.month("2026-11"))))
    command = ["pdftotext", "-bbox", str(tmp_path / "report.pdf"), "-"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = re.findall(r'xMin="([\d.]+)" yMin="([\d.]+)" xMax="([\d.]+)" yMax="([\d.]+)">([^<]*)<', found)
    boxes = [(text, *map(float, box)) for *box, text in words]
    marks = [box for box in boxes if box[0] == "1.4k"]
    assert len(marks) == 30, "one for each day: 60 times 24"
    for one in marks:
        above = [box for box in boxes if box[0].isdigit() and abs(box[1] - one[1]) < 3 and 0 < one[2] - box[2] < 14]
        assert len(above) == 1, "each below its own date"
        assert not [box for box in boxes if box != one and overlap(one, box) > 1]
    assert {text for text, *_ in boxes if set(text) == {"✗"}}, "and those of a pipeline are signs"


def overlap(one: tuple[str, float, float, float, float], other: tuple[str, float, float, float, float]) -> float:
    """By how many points two words lie on each other; not positive: they do not."""
    return min(one[3], other[3]) - max(one[1], other[1]) if one[2] < other[4] and other[2] < one[4] else 0.0


@pytest.mark.parametrize(
    ("failures", "sign"),
    [(7, "7"), (999, "999"), (1_000, "1k"), (1_499, "1.4k"), (9_999, "9.9k"), (12_999, "12k"), (2_500_000, "2M")],
)
def test_a_day_has_a_sign_of_four_at_most(failures: int, sign: str) -> None:
    cell = day_cell(DayFigures(date(2026, 11, 17), Tally(failed=failures), 1.0))
    assert (cell.mark, cell.word) == (sign, f"{failures:,} failed")


def test_many_pipelines_with_the_same_reason_are_counted_and_not_named() -> None:
    many = [(watched(f"p{number:03}", known=(ADDED, at(20))), []) for number in range(1_000)]
    some = [(watched(f"gone{number}", known=None, gone=True), []) for number in range(2)]
    later = [(watched(f"new{number}", known=(at(17, number), at(25))), []) for number in range(5)]
    notes = dict(content(made(*many, *some, *later)).notes)
    gone = "Gone0, not known to its partner any more; Gone1, not known to its partner any more"
    assert notes["Not known"] == f"1,000 pipelines, not read since Fri 20 Nov 00:00; {gone}; and 5 more."


def test_the_flakiest_pipelines_are_named_first_and_not_those_that_failed_most() -> None:
    def story(flips: int) -> list[RunFact]:
        bad = set(range(1, flips, 2)) | (set(range(12, 28)) if flips < 16 else set())
        return [run(at(17, number / 2), F if number in bad else S) for number in range(30)]

    pipelines = [(watched(f"p{flips}"), story(flips)) for flips in (8, 10, 16, 20, 24)]
    notes = dict(content(made(*pipelines)).notes)
    assert [name.split()[0] for name in notes["Flaky"].split(", ")] == ["P24", "P20", "P16"]
    assert notes["Flaky"].endswith("and 2 more.")


def test_what_is_unknown_reads_unknown_everywhere(tmp_path: Path) -> None:
    found = made((watched(known=(ADDED, at(19)), cron="0 3 * * *"), daily(3, last=18)))
    tiles = {tile.label: tile.value for tile in content(found).tiles}
    assert tiles == {
        "Success rate": "unknown",
        "On time": "unknown",
        "Incidents": "none known",
        "Mean time to recover": "none",
        "Runs": "3",
        "Known": "42.8 %",
    }
    assert content(found).summary == "3 of 3 known runs succeeded. No incidents are known. 42.8 % of the week is known."
    [row] = list(csv.DictReader(io.StringIO(as_csv(found).decode())))
    assert (row["success_rate"], row["on_time_rate"], row["coverage"]) == ("", "", "0.428571")
    figures = json.loads(as_json(found))["figures"]
    assert (figures["success_rate"], figures["on_time_rate"]) == (None, None)
    cells = [(cell.state, cell.word) for cell in content(found).days]
    assert cells == [("ok", "all well")] * 3 + [("unknown", "unknown")] * 4
    html = as_html(found).decode()
    assert "100 %" not in re.sub(r"week before: [^<]*|(width|height): ?100%", "", html)


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (None, "unknown"),
        (1.0, "100 %"),
        (0.999999, "99.9 %"),
        (0.9996, "99.9 %"),
        (0.9, "90 %"),
        (0.0, "0 %"),
        (0.57, "57 %"),
    ],
)
def test_a_rate_is_never_rounded_up(rate: float | None, words: str) -> None:
    assert percent(rate) == words


def test_a_revision_says_what_changed() -> None:
    first = made((watched(), daily(3)))
    found = revised(made((watched(), [*daily(3), run(at(17, 5), F)])), issue(first))
    [said] = content(found).revisions
    assert said == (
        "Revision 2 changed: runs 7 → 8; success rate 100 % → 87.5 %; incidents 0 → 1;"
        " mean time to recover none → 22 h."
    )


@pytest.mark.parametrize(
    "found", [made(), made((watched(), [])), made((watched(known=None), []))], ids=["none", "empty", "blind"]
)
def test_a_report_about_nothing_is_a_report(found: Report) -> None:
    for write in (as_html, as_pdf, as_csv, as_json):
        assert write(found)
    assert pages(as_pdf(found)) == 1
    assert "100 %" not in [tile.value for tile in content(found).tiles if tile.label in ("Success rate", "On time")]


def test_a_pdf_has_no_date() -> None:
    assert not re.search(rb"CreationDate|ModDate|CreateDate|ModifyDate|D:20\d\d", as_pdf(report("Orders")))
