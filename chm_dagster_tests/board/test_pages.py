"""What the pages say: the numbers of the contract's queries, each with a link to what it counts."""

import re
from html import unescape
from html.parser import HTMLParser

import httpx
import pytest
import sqlalchemy as sa

from chm_dagster.board.filters import Filters
from chm_dagster.domain.periods import Period, PeriodKind
from chm_dagster.errors import InputError
from chm_dagster.presentation.columns import HEALTH_SHAPES
from chm_dagster.reporting import issue_report
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.named_queries import ask
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.board.conftest import PAGES, RUN, change
from chm_dagster_tests.contracts.histories import DAY, HOUR, NOW, disable_client, execution, watch
from chm_dagster_tests.factories import rows

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Links(HTMLParser):
    """The addresses that a page links to or loads, and the elements and attributes that it is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.hrefs += [value for name, value in attrs if name == "href" and value]


def page(board: httpx.Client, path: str, status: int = 200) -> str:
    answer = board.get(path)
    assert answer.status_code == status, (path, answer.text[:500])
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def words(text: str) -> str:
    """The text of a page without markup."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<head>.*?</head>", "", text))).split())


def tiles(text: str) -> dict[str, int]:
    found = re.findall(r'class="tile is-(\w+)[^>]*>\s*<strong>([\d,]+)</strong>', text)
    return {health: int(number.replace(",", "")) for health, number in found}


def test_the_tiles_are_the_numbers_of_the_contract_and_link_to_what_they_count(
    board: httpx.Client, busy: Engine
) -> None:
    text = page(board, "/")
    clients = ask(busy, "latest_status_by_client")
    expected = {health: sum(row[health] for row in clients) for health in tiles(text)}
    assert tiles(text) == expected == {
        "failing": 1, "late": 1, "overrunning": 1, "unknown": 1, "healthy": 1, "paused": 1
    }  # fmt: skip
    for health, slug in zip(expected, ("orders", "stock", "sales", "idle", "bills", "items"), strict=True):
        assert f"/pipelines?health={health}" in Links(text).hrefs
        listed = page(board, f"/pipelines?health={health}")
        assert [name for name in ("orders", "stock", "sales", "idle", "bills", "items") if f"/{name}" in listed] == [
            slug
        ]


def test_clients_come_worst_first_and_each_count_links_to_its_pipelines(board: httpx.Client, busy: Engine) -> None:
    text = page(board, "/")
    table = text[text.index("<tbody>") : text.index("</tbody>")]
    assert re.findall(r'href="/clients/(\w+)"', table) == ["acme", "bolt", "cove", "dune"]
    for href in re.findall(r'href="(/pipelines\?client=[^"]+)"', table):
        number = re.search(re.escape(href) + r'"[^>]*>(\d+)<', table)
        listed = page(board, unescape(href))
        assert number is not None
        assert len(re.findall(r'<th scope="row">|<li><span class="badge is-paused">', listed)) == int(number[1])


@pytest.mark.parametrize("path", PAGES)
def test_no_page_links_to_a_page_that_does_not_exist(board: httpx.Client, busy: Engine, path: str) -> None:
    for href in set(Links(board.get(path).text).hrefs):
        if href.startswith("/"):
            assert board.get(href).status_code == 200 or href == path, (path, href)


def test_the_state_of_a_pipeline_and_its_reason_are_the_contracts(board: httpx.Client, busy: Engine) -> None:
    for row in ask(busy, "latest_status_by_pipeline"):
        text = words(page(board, f"/clients/{row['client_slug']}/{row['pipeline_slug']}"))
        assert f"{row['pipeline_name']} {HEALTH_SHAPES[row['health']]} {row['health']}" in text
        if row["health"] not in ("healthy", "failing"):
            assert row["health_reason"] in text


def test_a_strip_shows_each_run_by_shape_and_links_to_it(board: httpx.Client, busy: Engine) -> None:
    text = page(board, "/clients/acme/orders")
    runs = text[text.index('<ol class="runs"') : text.index("</ol>")]
    assert re.findall(r'aria-label="(\w+), ', runs) == ["success", "success", "success", "failed"] * 3
    assert len(set(re.findall(r'd="M1 50([^"]+)"', runs))) == 2
    client = page(board, "/clients/acme")
    assert "last 12 runs, oldest first: 3 success, 1 failed, 3 success, 1 failed" in client


def test_a_run_shows_its_whole_error_and_a_link_to_the_partner(board: httpx.Client, busy: Engine) -> None:
    text = page(board, RUN)
    assert "no disk for run-11" in words(text)
    assert "https://partner.example/run-11" in Links(text).hrefs


def test_what_changed_is_the_contracts_answer(board: httpx.Client, engine: Engine) -> None:
    watch(engine, "S" * 30 + "F", "orders")
    watch(engine, "F" * 30 + "S", "stock")
    text = words(page(board, "/changes"))
    assert "regression Acme / orders" in text
    assert "fixed Acme / stock" in text
    assert "orders" not in words(page(board, "/changes?change=fixed")).replace("Acme / stock", "")


def test_the_same_error_at_several_clients_is_one_group(board: httpx.Client, engine: Engine) -> None:
    for number, client in enumerate(("Acme", "Bolt", "Cove")):
        message = f"HTTPError: 503 Server Error for url: https://{client}.example/v{number}"
        watch(engine, [execution(n, "F", NOW - (9 - n) * HOUR, error=message) for n in range(2)], "orders", client)
    watch(
        engine, [execution(0, "F", NOW - 3 * HOUR, error="disk full"), execution(1, "S", NOW - HOUR)], "stock", "Dune"
    )
    found = page(board, "/errors")
    text = words(found)
    assert text.index("3 pipelines still failing 6 failures at 3 clients , 3 pipelines") < text.index("disk full")
    assert "over 1 failure at 1 client , 1 pipeline" in text
    first, second = dict.fromkeys(href for href in Links(found).hrefs if href.startswith("/errors/runs"))
    assert len(re.findall(r"Server Error", words(page(board, unescape(first))))) == 6
    assert "1 failure of 1 pipeline at 1 client in the last 7 days" in words(page(board, unescape(second)))
    assert "Same error at several clients 3 clients , 3 pipelines still failing" in words(page(board, "/"))
    assert "No run failed in the last 7 days." in words(page(board, "/errors?client=dune&platform=airflow"))
    assert "disk full" not in words(page(board, "/errors?client=acme"))


def test_flaky_pipelines_are_listed_with_their_runs(board: httpx.Client, engine: Engine) -> None:
    assert "No pipeline is flaky." in words(page(board, "/flaky"))
    watch(engine, "SFSFSFSFSFSF", "orders")
    watch(engine, "FFFFFFFFFFFF", "stock")
    text = page(board, "/flaky")
    assert "Acme / orders 100% 5 6 of 12" in words(text)
    assert "stock" not in text


def test_issued_reports_are_listed_with_their_figures_and_open(board: httpx.Client, engine: Engine) -> None:
    watch(engine, "SF", "orders", "Acme")
    watch(engine, "S", "orders", "Bolt")
    assert words(page(board, "/reports")).count("none issued yet") == 2
    for weeks in (1, 10):
        issue_report(engine, "acme", str(Period.of(PeriodKind.WEEK, (NOW - 7 * weeks * DAY).date())), None, NOW)
    latest = str(Period.of(PeriodKind.WEEK, (NOW - 7 * DAY).date()))
    assert f"Acme {latest} 0 unknown" in words(page(board, "/reports"))
    of_client = page(board, "/reports?client=acme")
    assert "Issued each week, at 09:00 on the day after it in UTC; sent to nobody." in words(of_client)
    addresses = [href for href in Links(of_client).hrefs if re.match("/reports/", href)]
    assert addresses[0] == f"/reports/acme/{latest}"
    assert len(addresses) == 2
    month = Period.of(PeriodKind.MONTH, NOW.date()).before()
    for period in (month, month.before()):
        issue_report(engine, "acme", None, str(period), NOW)
    of_client = page(board, "/reports?client=acme")
    found = [Period.read(href.rpartition("/")[2]) for href in Links(of_client).hrefs if re.match("/reports/", href)]
    assert [one.after for one in found] == sorted((one.after for one in found), reverse=True) and len(found) == 4
    answer = board.get(addresses[0])
    assert (answer.status_code, "<script" in answer.text) == (200, False)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "Not found" in words(page(board, "/reports?client=none", 404))
    assert "Not found" in words(page(board, f"/reports/none/{latest}", 404))
    assert "not valid" in words(page(board, "/reports/acme/2026-W99", 400))


RULES = {
    "the latest run failed": {"rule_type": "on_failure"},
    "2 failures in a row": {"rule_type": "consecutive_failures", "threshold": 2},
    "3 failures within 1 h": {"rule_type": "failures_in_window", "threshold": 3, "window_minutes": 60},
    "no success within 1 d": {"rule_type": "no_success_in_window", "window_minutes": 1_440},
    "a run takes longer than 45 min": {"rule_type": "running_too_long", "window_minutes": 45},
    "a run takes longer than the pipeline's limit": {"rule_type": "running_too_long"},
    "a run is late by more than 15 min": {"rule_type": "missed_run", "window_minutes": 15},
    "a run is late by more than the pipeline's grace time": {"rule_type": "missed_run"},
}


def test_each_rule_says_in_words_when_it_fires(board: httpx.Client, warehouse: Warehouse) -> None:
    warehouse.clients.create("Acme")
    for number, fields in enumerate(RULES.values()):
        warehouse.rules.create({"client_id": "acme", "channel": "inbox", "destination": f"team-{number}", **fields})
    page = unescape(board.get("/rules").text)
    assert re.findall(r"<td>([^<]+) <a [^>]+>Back-test</a></td><td>inbox: team-\d</td>", page) == list(RULES)


def test_disabled_clients_are_on_no_page_of_now(board: httpx.Client, busy: Engine) -> None:
    disable_client(busy, "acme")
    assert "acme" not in page(board, "/")
    assert page(board, "/clients/acme")  # its history stays


def test_filters_in_the_address_filter(board: httpx.Client, busy: Engine) -> None:
    change(busy, "orders", "environment = 'staging'")
    assert {health: n for health, n in tiles(page(board, "/?environment=staging")).items() if n} == {"failing": 1}
    assert "orders" in page(board, "/pipelines?q=ORD")
    assert "stock" not in page(board, "/pipelines?q=ORD")
    assert "Pipelines of acme: failing" in words(page(board, "/pipelines?client=acme&health=failing"))


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("/?helth=failing", "did you mean health?"),
        ("/pipelines?health=sick", "health: must be one of"),
        ("/?environment=moon", "environment: must be one of"),
        ("/pipelines?from=-1", "from: must be a whole number"),
        ("/pipelines?from=99999999999", "from: must be a whole number"),
        ("/pipelines?q=%00", "q: must be plain text"),
        ("/changes?change=worse", "change: must be one of"),
        ("/errors?days=8", "days: must be one of 1, 7, 30"),
        ("/errors?platform=abacus", "platform: must be one of"),
        ("/errors/runs?error=%00", "error: must be plain text"),
        ("/?from=%D9%A3", "from: must be a whole number"),
    ],
)
def test_an_address_that_is_not_valid_says_what_would_be(board: httpx.Client, address: str, named: str) -> None:
    assert named in words(page(board, address, 400))


@pytest.mark.parametrize("path", ["/clients/none", "/clients/acme/none", "/clients/acme/orders/run?id=none"])
def test_what_does_not_exist_is_a_page_that_says_so(board: httpx.Client, busy: Engine, path: str) -> None:
    assert "Not found" in words(page(board, path, 404))


def test_a_list_that_is_cut_says_what_is_left_out_and_links_to_it(board: httpx.Client, engine: Engine) -> None:
    watch(engine, "F", "p000")
    for number in range(1, 53):
        watch(engine, "S" if number else "F", f"p{number:03}")
    text = page(board, "/pipelines")
    assert "1 to 50 of 53 pipelines. 3 pipelines more" in words(text)
    assert text.index("p000") < text.index("p001")
    rest = page(board, "/pipelines?from=50")
    assert "51 to 53 of 53 pipelines." in words(rest)
    assert len(re.findall(r'<th scope="row">', rest)) == 3


def test_without_anything_the_board_says_what_to_do_first(board: httpx.Client) -> None:
    text = words(page(board, "/"))
    assert "No clients yet." in text
    assert "chm client create" in text
    assert set(tiles(page(board, "/")).values()) == {0}
    assert "No pipeline is read from a partner" in words(page(board, "/partners"))


def test_a_database_that_does_not_answer_is_no_empty_board(warehouse: object, engine: Engine) -> None:
    from chm_dagster.warehouse.engine import make_engine
    from chm_dagster.warehouse.warehouse import Warehouse
    from chm_dagster_tests.board.conftest import browser, served

    with served(Warehouse(make_engine("postgresql://127.0.0.1:1/none"))) as url, browser(url) as board:
        text = words(page(board, "/", 503))
    assert "The database does not answer" in text
    assert "127.0.0.1:1" not in text


# --- what comes from outside -------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(engine: Engine) -> Engine:
    """A ledger in which every text that others choose is an attack."""
    watch(engine, "SF")
    with engine.begin() as connection:
        values = {"text": HOSTILE}
        connection.execute(sa.text("UPDATE clients SET name = :text"), values)
        connection.execute(
            sa.text(
                "UPDATE pipelines SET name = :text, description = :text, connection = :text, schedule_cron = '0 0 1 1 *',"
                " sync_error = :text, sync_error_code = 'unreachable', sync_failing_since = now()"
            ),
            values,
        )
        connection.execute(
            sa.text(
                "UPDATE runs SET error_message = :text, status_reason = :text, external_run_id = external_run_id || :text,"
                " source_url = 'javascript:alert(3)' WHERE status = 'failed'"
            ),
            values,
        )
        connection.execute(
            sa.text(
                "INSERT INTO alert_rules (client_id, rule_type, channel, destination)"
                " SELECT id, 'on_failure', 'slack', :text FROM clients"
            ),
            values,
        )
    return engine


def test_nothing_that_others_write_becomes_markup_or_a_link_that_runs(board: httpx.Client, hostile: Engine) -> None:
    (run,) = rows(hostile, "SELECT external_run_id FROM runs WHERE status = 'failed'")
    address = str(httpx.URL("/clients/acme/orders/run", params={"id": run["external_run_id"]}))
    for path in (
        "/",
        "/wall",
        "/pipelines",
        "/changes",
        "/errors",
        "/rules",
        "/partners",
        "/clients/acme",
        "/clients/acme/orders",
        address,
    ):
        parsed = Links(page(board, path))
        assert [attributes for tag, attributes in parsed.tags if tag == "script"] == [
            {"src": next(h["src"] for t, h in parsed.tags if t == "script"), "defer": None}
        ]
        for tag, attributes in parsed.tags:
            assert tag not in ("img", "iframe", "object", "style", "base"), path
            assert not any(name.startswith("on") or name == "style" for name in attributes), (path, attributes)
        assert all(href.startswith(("/", "#", "https://")) for href in parsed.hrefs), path
    assert HOSTILE in unescape(page(board, address))


@pytest.mark.parametrize("path", PAGES)
def test_every_page_forbids_scripts_and_styles_of_its_own(board: httpx.Client, path: str) -> None:
    headers = board.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_links_keep_the_filters_and_escape_what_they_carry() -> None:
    filters = Filters.read({"client": "acme", "environment": "prod", "q": "a&b", "from": "50"})
    assert filters.link("/pipelines") == "/pipelines?client=acme&environment=prod"
    assert filters.link("/pipelines", client=None, text="a&b=c d") == "/pipelines?environment=prod&q=a%26b%3Dc%20d"
    with pytest.raises(InputError, match="unknown filter"):
        Filters.read({"at-all": "1"})
