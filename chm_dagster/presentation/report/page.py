"""A report as a page: HTML that loads nothing, and PDF. The same report gives the same bytes.

The templates get texts as data; neither Jinja2 nor Typst reads them as markup.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import orjson

from chm_dagster.domain.reports import Report
from chm_dagster.presentation.report.content import content

_FOLDER = Path(__file__).parent


def as_html(report: Report) -> bytes:
    """The page in one file, for light and dark screens and for printers."""
    text: str = _template().render(page=content(report))
    return text.encode()


@functools.cache
def _template() -> Any:
    # Imported here: most commands write no page.
    import jinja2

    loader = jinja2.FileSystemLoader(_FOLDER)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html.j2")


def as_pdf(report: Report) -> bytes:
    """The page in A4, tagged for screen readers. It names no time of its making."""
    import typst

    data = orjson.dumps(dataclasses.asdict(content(report))).decode()
    # The compiler's own fonts: those of a machine would make other bytes on another one.
    compiler = typst.Compiler(_FOLDER / "page.typ", root=_FOLDER, font_paths=_fonts(), sys_inputs={"report": data})
    made = compiler.compile(format="pdf", timestamp=int(report.end.timestamp()))
    if not isinstance(made, bytes):
        raise TypeError("the compiler returned no document")
    return made


@functools.cache
def _fonts() -> Any:
    import typst

    return typst.Fonts(include_system_fonts=False)
