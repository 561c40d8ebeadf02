"""`chm dashboards metabase apply` against a fake of Metabase, whose requests are held against Metabase's own document."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from chm_dagster.presentation.metabase import cards, dashboards
from chm_dagster_tests.cli.conftest import Answer, Chm
from chm_dagster_tests.dashboards.metabase_fake import API, VERSION, FakeMetabase, serving, violations

USER, PASSWORD, KEY, BI_PASSWORD = "chm@example.com", "sentinel-admin-4711", "sentinel-key-4711", "sentinel-bi-4711"
SECRETS = (PASSWORD, KEY, BI_PASSWORD)
Fake = Callable[..., tuple[FakeMetabase, Callable[..., Answer]]]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in (("USER", USER), ("PASSWORD", PASSWORD)):
        monkeypatch.setenv(f"CHM_METABASE_{name}", value)
    monkeypatch.setenv("CHM_BI_POSTGRES_PASSWORD", BI_PASSWORD)
    return monkeypatch


@contextmanager
def fake(call: Chm, **traits: Any) -> Iterator[tuple[FakeMetabase, Callable[..., Answer]]]:
    """A fresh fake, and a call of `apply` with it, in which no secret may be said."""
    metabase = FakeMetabase(**traits)
    with serving(metabase.answer) as url:

        def apply(*options: str, database: str = "postgres:5432/chm?sslmode=disable") -> Answer:
            said = call("dashboards", "metabase", "apply", "--url", url, "--database", database, *options)
            assert not [secret for secret in SECRETS if secret in said.out + said.err]
            return said

        yield metabase, apply
        assert metabase.refused == []


def changed(answer: Answer) -> Counter[tuple[str, str]]:
    assert answer.code == 0, answer.err
    return Counter((change["kind"], change["change"]) for change in answer.json)


@pytest.mark.parametrize("stages", [True, False], ids=["newer form", "older form"])
def test_a_fresh_metabase_is_set_up_and_a_second_run_changes_nothing(
    call: Chm, environment: pytest.MonkeyPatch, stages: bool
) -> None:
    with fake(call, stages=stages) as (metabase, apply):
        assert changed(apply()) == {
            ("Metabase", "set up"): 1,
            ("database", "created"): 1,
            ("collection", "created"): 1,
            ("card", "created"): len(cards()),
            ("dashboard", "created"): len(dashboards()),
            ("dashboard", "updated"): len(dashboards()),
        }
        kept = copy.deepcopy(metabase.store)
        writes = [request for request in metabase.requests if request[0] != "GET"]
        assert changed(apply()) == {}
        assert metabase.store == kept
        again = [request for request in metabase.requests if request[0] != "GET"]
        assert again == [*writes, ("POST", "/api/session")]
        assert apply("--format", "table").out == "Metabase is up to date; nothing was changed.\n"


def test_metabase_holds_what_the_files_hold(call: Chm, environment: pytest.MonkeyPatch) -> None:
    with fake(call) as (metabase, apply):
        apply()
    sent = {c["entity_id"]: c for c in metabase.store["card"].values()}
    numbers = {c["id"]: c["entity_id"] for c in metabase.store["card"].values()}
    for card in cards():
        native = sent[card["entity_id"]]["dataset_query"]["native"]
        (stage,) = card["dataset_query"]["stages"]
        assert native["query"] == stage["native"]
        assert list(native["template-tags"].values()) == stage["template-tags"]
    places = ("row", "col", "size_x", "size_y")
    for wanted, found in zip(dashboards(), metabase.store["dashboard"].values(), strict=True):
        assert found["parameters"] == wanted["parameters"]
        assert [(numbers[c["card_id"]], *(c[p] for p in places)) for c in found["dashcards"]] == [
            (c["card_id"], *(c[p] for p in places)) for c in wanted["dashcards"]
        ]
        for one, other in zip(found["dashcards"], wanted["dashcards"], strict=True):
            assert {m["parameter_id"] for m in one["parameter_mappings"]} == {
                m["parameter_id"] for m in other["parameter_mappings"]
            }
    (database,) = metabase.store["database"].values()
    assert (database["details"]["user"], database["details"]["password"]) == ("chm_bi", BI_PASSWORD)
    links = [c["visualization_settings"] for d in metabase.store["dashboard"].values() for c in d["dashcards"]]
    targets = {s["click_behavior"]["targetId"] for link in links for s in link.get("column_settings", {}).values()}
    assert targets <= set(metabase.store["dashboard"]) and len(targets) == 2


def test_every_described_request_is_sent(call: Chm, environment: pytest.MonkeyPatch) -> None:
    with fake(call) as (metabase, apply):
        apply()
        next(iter(metabase.store["card"].values()))["display"] = "pie"
        next(iter(metabase.store["collection"].values()))["description"] = "mine"
        apply()
        apply("--renew-password")
    described = {(method.upper(), route) for route, methods in API["paths"].items() for method in methods}
    assert set(metabase.requests) == described


def test_what_somebody_changed_is_put_right_and_nothing_else(call: Chm, environment: pytest.MonkeyPatch) -> None:
    with fake(call) as (metabase, apply):
        apply()
        card, deleted, *_ = metabase.store["card"].values()
        kept = card["dataset_query"]["native"]["query"]
        card["dataset_query"]["native"]["query"] = "SELECT 1"
        del metabase.store["card"][deleted["id"]]
        (dashboard, *_) = metabase.store["dashboard"].values()
        first = dashboard["dashcards"][0]["id"]
        dashboard["dashcards"][2]["row"] = 99
        assert changed(apply()) == {("card", "updated"): 1, ("card", "created"): 1, ("dashboard", "updated"): 1}
        assert card["dataset_query"]["native"]["query"] == kept
        assert dashboard["dashcards"][0]["id"] == first, "what was right keeps its identity"
        assert changed(apply()) == {}


def test_a_renamed_question_is_known_by_its_entity_id(call: Chm, environment: pytest.MonkeyPatch) -> None:
    with fake(call) as (metabase, apply):
        apply()
        next(iter(metabase.store["card"].values()))["name"] = "Mine"
        assert changed(apply()) == {("card", "updated"): 1}


def test_the_database_follows_its_address_and_its_password_on_request(
    call: Chm, environment: pytest.MonkeyPatch
) -> None:
    with fake(call) as (metabase, apply):
        apply()
        (database,) = metabase.store["database"].values()
        assert changed(apply(database="db.example.com/chm")) == {("database", "updated"): 1}
        assert database["details"]["ssl"] is True and database["details"]["port"] == 5432
        environment.setenv("CHM_BI_POSTGRES_PASSWORD", "another-sentinel")
        assert changed(apply("--renew-password", database="db.example.com/chm")) == {("database", "updated"): 1}
        assert database["details"]["password"] == "another-sentinel"


def test_an_api_key_signs_in(call: Chm, environment: pytest.MonkeyPatch) -> None:
    with fake(call) as (metabase, apply):
        apply()
        metabase.keys.add(KEY)
        for name in ("CHM_METABASE_USER", "CHM_METABASE_PASSWORD"):
            environment.delenv(name)
        environment.setenv("CHM_METABASE_API_KEY", KEY)
        before = metabase.requests.count(("POST", "/api/session"))
        assert changed(apply()) == {}
        assert metabase.requests.count(("POST", "/api/session")) == before
        metabase.keys.clear()
        (line,) = apply().errors
        assert "credentials refused (401); set CHM_METABASE_API_KEY" in line


# --- what goes wrong is one line, with no secret in it -------------------------------------------------------------------


def test_a_refused_sign_in_is_one_line(call: Chm, environment: pytest.MonkeyPatch) -> None:
    with fake(call) as (metabase, apply):
        apply()
        metabase.users[USER] = "something else"
        said = apply()
        assert said.code == 2 and said.errors == [
            "Metabase: refused the sign-in (credentials); set CHM_METABASE_API_KEY, or CHM_METABASE_USER and "
            "CHM_METABASE_PASSWORD, of an administrator"
        ]


def test_a_fresh_metabase_takes_a_user(call: Chm, environment: pytest.MonkeyPatch) -> None:
    environment.delenv("CHM_METABASE_USER")
    with fake(call) as (metabase, apply):
        said = apply()
        assert said.code == 2 and "it is not set up yet" in said.errors[0] and metabase.users == {}


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ({"missing": "card"}, "/api/card: "),
        ({"missing": "setup"}, "refused to create the administrator (404)"),
        ({"forget": ("dataset_query",)}, "was created, and its dataset_query is not what was sent"),
        ({"forget": ("dashcards",)}, "was updated, and its dashcards is not what was sent"),
    ],
    ids=str,
)
def test_another_api_is_one_line_that_names_the_version(
    call: Chm, environment: pytest.MonkeyPatch, traits: dict[str, Any], message: str
) -> None:
    with fake(call, **traits) as (_, apply):
        said = apply()
        assert said.code == 2
        (line,) = said.errors
        assert message in line
        if "setup" not in message and traits.get("missing") != "setup":
            assert line.endswith(
                f"it is Metabase {VERSION}, whose API may differ from the one that this release of CHM knows"
            )


def test_a_look_that_is_not_kept_is_a_warning(call: Chm, environment: pytest.MonkeyPatch) -> None:
    with fake(call, forget=("width",)) as (_, apply):
        said = apply()
        assert said.code == 0
        assert said.errors[0] == "warning: this Metabase did not keep width of the dashboard CHM: overview"


def test_another_server_is_not_taken_for_metabase(call: Chm, environment: pytest.MonkeyPatch) -> None:
    for value in (b"<html>", {"status": "ok"}):
        with serving(lambda *_, value=value: (200, value)) as url:  # type: ignore[misc]
            said = call("dashboards", "metabase", "apply", "--url", url, "--database", "postgres/chm")
            assert said.code == 2 and len(said.errors) == 1 and "Metabase" in said.errors[0]


@pytest.mark.parametrize("database", ["postgres", "chm:sentinel-bi-4711@postgres/chm", "postgres:port/chm", "a/b/c"])
def test_an_unusable_database_is_refused_unquoted(call: Chm, environment: pytest.MonkeyPatch, database: str) -> None:
    with fake(call) as (metabase, apply):
        said = apply(database=database)
        assert said.code == 2 and said.errors == ["--database: is not host:port/name"]
        assert metabase.requests == []


def test_the_address_of_the_database_comes_from_chms_own(call: Chm, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CHM_DATABASE_URL", "postgresql://chm_app:sentinel-admin-4711@db.example.com:6432/ledger")
    with fake(call) as (metabase, _), serving(metabase.answer) as url:
        said = call("dashboards", "metabase", "apply", "--url", url)
        assert said.code == 0 and PASSWORD not in said.out + said.err
        (database,) = metabase.store["database"].values()
        details = database["details"]
        assert (details["host"], details["port"], details["dbname"]) == ("db.example.com", 6432, "ledger")
        assert details["user"] == "chm_bi"


# --- the document notices mistakes ---------------------------------------------------------------------------------------

CARD = {"name": "A", "display": "table", "visualization_settings": {},
        "dataset_query": {"type": "native", "database": 1, "native": {}}}  # fmt: skip
PLACED = {"id": -1, "card_id": 1, "row": 0, "col": 0, "size_x": 12, "size_y": 8}


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/api/cards", None),
        ("DELETE", "/api/card/1", None),
        ("POST", "/api/card", None),
        ("GET", "/api/card/1", {}),
        ("POST", "/api/card", {k: v for k, v in CARD.items() if k != "display"}),
        ("POST", "/api/card", CARD | {"displai": "table"}),
        ("POST", "/api/card", CARD | {"collection_id": "1"}),
        ("POST", "/api/card", CARD | {"parameters": [{"id": "x"}]}),
        ("PUT", "/api/dashboard/1", {"dashcards": [PLACED | {"sizeX": 1}]}),
        ("PUT", "/api/dashboard/1", {"dashcards": [{k: v for k, v in PLACED.items() if k != "id"}]}),
        ("PUT", "/api/dashboard/1", {"dashcards": [PLACED | {"row": -1}]}),
        ("PUT", "/api/dashboard/1", {"width": "wide"}),
        ("PUT", "/api/dashboard/1", {"dashcards": [PLACED | {"parameter_mappings": [{"target": []}]}]}),
        ("GET", "/api/collection/1/items?models=cards", None),
        ("GET", "/api/collection/1/items?model=card", None),
        ("POST", "/api/session", {"user": "a", "password": "b"}),
        ("POST", "/api/setup", {"token": "a", "user": {"email": "a@example.com", "password": "b"}}),
    ],
)  # fmt: skip
def test_a_mistake_in_a_request_is_noticed(method: str, target: str, body: Any) -> None:
    assert violations(method, target, body)
    assert not violations("POST", "/api/card", CARD)
    assert not violations("PUT", "/api/dashboard/1", {"dashcards": [PLACED]})
