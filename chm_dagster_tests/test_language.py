"""One word per concept: words that the glossary has replaced are in no tracked file except the changelog."""

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

REPLACED = {
    "report, notify, say, known": r"told",
    "reports": r"tells\s+of",
    "not set": r"never\s+told",
    "sync": r"sweep(?:s|er|ers|ing)?|swept",
    "dry run": r"rehears(?:e|es|ed|al|als|ing)",
    "unmatched events": r"shelf|shelves",
    "volatile": r"restless",
    "different, what changed": r"another\s+than",
}
"""The word to use -> the word that it replaces."""

EXCEPTIONS = {
    "CHANGELOG.md": "lists what was renamed",
    "chm_dagster_tests/test_language.py": "lists the words and tests their detection",
    "chm_dagster/settings.py": "names the old setting, to reject it with the new name",
    "chm_dagster_tests/test_docs.py": "knows the old setting",
    "chm_dagster_tests/unit/test_settings.py": "sets the old setting",
    "migrations/versions/0001_inventory_and_runs.py": "released: its comments are in existing databases",
    "migrations/versions/0003_running_runs.py": "released",
    "migrations/versions/0006_sync_state.py": "its downgrade restores the comment of 0001",
    "migrations/versions/0009_plain_comments.py": "its downgrade restores the comments of 0001",
}
"""Files that may use a replaced word -> why."""


def pattern(words: str) -> re.Pattern[str]:
    """Matches the words on their own, as part of `snake_case` and at the start of a `CamelCase` word."""
    return re.compile(rf"(?<![a-z])(?:{words})(?![a-z])|(?<![A-Za-z])(?i:{words})(?![a-z])")


PATTERNS = {replacement: pattern(words) for replacement, words in REPLACED.items()}


def hits(text: str) -> Iterator[str]:
    """The replaced words of a text, each with its line and the word to use."""
    for replacement, words in PATTERNS.items():
        for found in words.finditer(text):
            yield f"line {text.count(chr(10), 0, found.start()) + 1}: {found[0]!r} (use: {replacement})"


def offenders(root: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """The hits in each text file, and in its name."""
    found = {}
    for name in names:
        content = (root / name).read_bytes()
        text = "" if b"\0" in content else content.decode("utf-8")
        if problems := [*(f"the name: {hit}" for hit in hits(name)), *hits(text)]:
            found[name] = problems
    return found


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    assert listed.returncode == 0, "this test needs the repository, not only its files"
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_uses_a_word_that_was_replaced() -> None:
    found = offenders(ROOT, tracked())
    assert {name: problems for name, problems in found.items() if name not in EXCEPTIONS} == {}


def test_every_exception_is_still_needed() -> None:
    assert set(EXCEPTIONS) == set(offenders(ROOT, EXCEPTIONS))


@pytest.mark.parametrize(
    "text",
    [
        "A partner has told us.",
        "ToldRun",
        "told_runs = {}",
        "_told",
        "which tells\nof its runs",
        "it was never told",
        "RunFeed.sweep",
        "sweep_schedule",
        "CHM_SWEEP_CRON",
        "Sweeping takes long",
        "all pipelines are swept",
        "a rehearsal",
        "the check rehearses a replay",
        "Shelf(folder)",
        "the shelves",
        "restless: [clock]",
        "What is another than it was",
    ],
)
def test_a_replaced_word_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"A clean line.\n{text}\n", encoding="utf-8")
    (problem, *_) = offenders(tmp_path, ["page.md"])["page.md"]
    assert problem.startswith("line 2: ")


def test_a_replaced_word_in_the_name_of_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "sweep.py").touch()
    assert list(offenders(tmp_path, ["sweep.py"])) == ["sweep.py"]


def test_words_that_only_look_alike_are_left_alone(tmp_path: Path) -> None:
    text = "A stolid, untold bookshelf; tell me; a test passes; bypasses; another one than this; footer; stoldness.\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\0told")
    assert offenders(tmp_path, ["page.md", "picture.png"]) == {}
