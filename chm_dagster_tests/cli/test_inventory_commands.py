"""`chm client`, `chm pipeline`, `chm rule`."""

import pytest

from chm_dagster.domain.clients import ClientChanges
from chm_dagster.domain.pipelines import NewPipelineOfClient, PipelineChanges
from chm_dagster.domain.rules import AlertRuleChanges, NewAlertRule
from chm_dagster.domain.runs import NewRun
from chm_dagster_tests.cli.conftest import Chm

CLIENT = [
    *("id", "slug", "name", "is_active", "timezone", "report_email", "report_period"),
    *("maintenance", "created_at", "updated_at"),
]
PIPELINE = [
    *("key", "id", "client_id", "client_slug", "client_name", "slug", "name", "platform", "connection", "external_id"),
    *("pipeline_type", "environment", "description", "is_active", "schedule_cron", "schedule_timezone"),
    *("grace_minutes", "max_runtime_minutes", "owner", "tags", "maintenance"),
    *("synced_through", "observed_through", "sync_failing_since", "sync_error"),
    *("sync_error_code", "due_at", "created_at", "updated_at"),
]
RULE = [
    *("client", "pipeline", "id", "client_id", "pipeline_id", "rule_type", "threshold", "window_minutes", "channel"),
    *("destination", "is_enabled", "muted_until", "created_at", "updated_at"),
]
NEW = ("--platform", "custom", "--type", "export")
TO_SLACK = ("--type", "on_failure", "--channel", "slack", "--destination", "#ops")


def test_a_client_is_created_renamed_disabled_and_enabled_and_keeps_its_slug(chm: Chm) -> None:
    assert list(chm("client", "create", "Acme GmbH").json) == CLIENT
    assert chm("client", "update", "acme-gmbh", "--name", "Acme AG").json["name"] == "Acme AG"
    assert chm("client", "disable", "acme-gmbh").json["is_active"] is False
    assert chm("client", "list").json == []
    assert [c["slug"] for c in chm("client", "list", "--all").json] == ["acme-gmbh"]
    assert chm("client", "enable", "acme-gmbh").json["is_active"] is True
    assert chm("client", "get", "acme-gmbh").json == chm("client", "list").json[0]


def test_what_reports_need_is_set_and_cleared(acme: Chm) -> None:
    set_ = acme("client", "update", "acme", "--timezone", "Europe/Berlin", "--report-email", "data@acme.example").json
    assert (set_["timezone"], set_["report_email"]) == ("Europe/Berlin", "data@acme.example")
    assert acme("client", "update", "acme", "--clear", "report_email").json["report_email"] is None
    assert set_["report_period"] == "week"
    assert acme("client", "update", "acme", "--report-period", "both").json["report_period"] == "both"
    owned = acme("pipeline", "update", "acme/orders", "--owner", "Data team", "--tags", "finance, nightly").json
    assert (owned["owner"], owned["tags"]) == ("Data team", ["finance", "nightly"])
    assert acme("pipeline", "update", "acme/orders", "--clear", "tags").json["tags"] == []


def test_things_are_named_by_slug_or_id(acme: Chm) -> None:
    client, pipeline = acme("client", "get", "acme").json, acme("pipeline", "get", "acme/orders").json
    assert acme("client", "get", client["id"]).json == client
    assert acme("pipeline", "get", pipeline["id"]).json == pipeline
    assert list(pipeline) == PIPELINE
    assert len(acme("pipeline", "list", "--client", client["id"]).json) == 2


def test_a_person_sees_what_was_done_in_one_line(chm: Chm) -> None:
    def said(*words: str) -> str:
        return chm(*words, "--format", "table").out

    assert said("client", "create", "Acme") == "created client acme\n"
    assert said("client", "update", "acme", "--name", "Acme AG") == "updated client acme\n"
    assert said("client", "update", "acme", "--name", "Acme AG") == "unchanged: client acme\n"
    assert said("client", "disable", "acme") == "disabled client acme\n"
    assert said("client", "disable", "acme") == "unchanged: client acme\n"
    assert said("client", "enable", "acme") == "enabled client acme\n"
    assert said("pipeline", "create", "acme", "Orders", *NEW, "--external-id", "o1") == "created pipeline acme/orders\n"
    assert "without an external id" in said("pipeline", "create", "acme", "Other", *NEW)
    assert said("pipeline", "disable", "acme/orders") == "disabled pipeline acme/orders\n"


def test_a_list_is_read_to_the_end_or_up_to_the_limit(chm: Chm) -> None:
    for number in range(5):
        chm("client", "create", f"C{number}")
    assert [c["slug"] for c in chm("client", "list").json] == ["c0", "c1", "c2", "c3", "c4"]
    assert [c["slug"] for c in chm("client", "list", "--limit", 2).json] == ["c0", "c1"]


def test_pipelines_are_filtered(acme: Chm) -> None:
    acme("pipeline", "create", "acme", "Lake", "--platform", "airflow", "--type", "transform", "--connection", "eu")
    acme("pipeline", "update", "acme/lake", "--environment", "dev")

    def keys(*filters: str) -> list[str]:
        return [p["key"] for p in acme("pipeline", "list", *filters).json]

    assert keys("--client", "acme") == ["acme/invoices", "acme/lake", "acme/orders"]
    for one in (("--platform", "airflow"), ("--type", "transform"), ("--environment", "dev"), ("--connection", "eu")):
        assert keys(*one) == ["acme/lake"]
    acme("client", "disable", "acme")
    assert keys() == ["cafe-nord/feed"]
    assert len(keys("--all")) == 4


def test_an_update_keeps_fields_that_are_not_named_and_clears_those_set_to_nothing(acme: Chm) -> None:
    given = (
        "--external-id",
        "o1",
        "--schedule-cron",
        "0 6 * * *",
        "--schedule-timezone",
        "Europe/Berlin",
        "--grace-minutes",
        "5",
    )
    acme("pipeline", "update", "acme/orders", *given, "--description", "daily", "--max-runtime-minutes", "60")
    changed = acme("pipeline", "update", "acme/orders", "--name", "Orders 2", "--clear", "max-runtime-minutes").json
    assert (changed["name"], changed["slug"], changed["max_runtime_minutes"]) == ("Orders 2", "orders", None)
    assert (changed["external_id"], changed["schedule_cron"], changed["grace_minutes"]) == ("o1", "0 6 * * *", 5)
    cleared = acme("pipeline", "update", "acme/orders", "--clear", "schedule_timezone", "--clear", "--description").json
    assert (cleared["schedule_timezone"], cleared["description"]) == (None, None)


def test_a_rule_is_named_by_its_id_or_the_end_of_it(acme: Chm) -> None:
    rule = acme("rule", "create", "--client", "acme", *TO_SLACK).json
    assert list(rule) == RULE
    assert (rule["client"], rule["pipeline"], rule["is_enabled"]) == ("acme", None, True)
    end = rule["id"][-8:]
    assert acme("rule", "get", end).json == acme("rule", "get", rule["id"]).json == rule
    assert acme("rule", "update", end, "--destination", "#night").json["destination"] == "#night"
    assert acme("rule", "update", end, "--muted-until", "4h").json["muted_until"] > rule["created_at"]
    assert acme("rule", "update", end, "--clear", "muted-until").json["muted_until"] is None
    assert acme("rule", "disable", end).json["is_enabled"] is False
    assert acme("rule", "enable", end).json["is_enabled"] is True
    assert end in acme("rule", "list", "--format", "table").out
    assert acme("rule", "delete", end).json["id"] == rule["id"]
    assert acme("rule", "list").json == []
    assert acme("rule", "delete", end).code == 2


def test_rules_are_filtered_by_client_and_pipeline(acme: Chm) -> None:
    acme("rule", "create", "--client", "acme", *TO_SLACK)
    more = ("--type", "consecutive_failures", "--threshold", "3", "--channel", "email", "--destination", "a@b.example")
    acme("rule", "create", "--pipeline", "acme/orders", *more)
    acme("rule", "create", "--client", "cafe-nord", *TO_SLACK)

    def about(*filters: str) -> list[tuple[str | None, str | None]]:
        return [(r["client"], r["pipeline"]) for r in acme("rule", "list", *filters).json]

    assert about() == [("acme", None), (None, "acme/orders"), ("cafe-nord", None)]
    assert about("--client", "acme") == [("acme", None), (None, "acme/orders")]
    assert about("--pipeline", "acme/orders") == about("--type", "consecutive_failures") == [(None, "acme/orders")]
    assert about("--disabled") == []
    assert len(about("--enabled")) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("client get acm", "no client 'acm'; did you mean acme?"),
        ("client get zebra", "no client 'zebra': name it by its slug"),
        ("client create Acme", "name: another client has this name; choose another one"),
        ("client create Other --slug acme", "slug: another client has this slug; choose another one"),
        ("client update acme", "options: nothing to change; see --help for what can be"),
        ("pipeline get acme/order", "no pipeline 'acme/order'; did you mean acme/orders?"),
        ("pipeline get feed", "no pipeline 'feed'; did you mean cafe-nord/feed?"),
        ("pipeline create acm X --platform custom --type export", "no client 'acm'; did you mean acme?"),
        ("pipeline update acme/orders --clear nam", "nam: unknown field; did you mean name?"),
        ("pipeline update acme/orders --clear name", "name: cannot be cleared; leave it out to keep its value"),
        (
            "pipeline update acme/orders --name x --clear name",
            "name: is set and cleared at once; leave one of the two out",
        ),
        (
            "pipeline update acme/orders --grace-minutes -1",
            "grace_minutes: must be at least 0",
        ),
        (
            "pipeline update acme/orders --schedule-cron daily",
            "schedule_cron: must have five fields, such as 0 6 * * 1-5; this has 1",
        ),
        ("pipeline list --client nobody", "no client 'nobody': name it by its slug"),
        (
            "rule create --type on_failure --channel slack --destination x",
            "--client: is required, unless there is --pipeline",
        ),
        ("rule get abcd1234", "no alert rule 'abcd1234': give its id, or the end of it"),
        ("rule get 00000000-0000-0000-0000-000000000000", "no alert rule '00000000"),
        (
            "rule create --client acme --type on_failure --channel slack --destination x --muted-until soon",
            "muted_until: must be a time such as",
        ),
    ],
)
def test_a_wrong_value_is_reported_in_one_line_with_the_valid_ones(acme: Chm, words: str, said: str) -> None:
    answer = acme(*words.split())
    assert (answer.code, answer.out) == (2, "")
    assert len(answer.errors) == 1
    assert answer.errors[0].startswith(said)


def test_an_ambiguous_end_of_a_rule_id_is_not_guessed(acme: Chm) -> None:
    acme("rule", "create", "--client", "acme", *TO_SLACK)
    acme("rule", "create", "--client", "cafe-nord", *TO_SLACK)
    ids = [rule["id"] for rule in acme("rule", "list").json]
    # An end that is too short matches nothing instead of the first rule.
    assert acme("rule", "get", ids[0][-3:]).code == 2


def test_an_empty_inventory_suggests_creating_the_first_client(chm: Chm) -> None:
    assert chm("client", "get", "acme").errors == [
        "no client 'acme': there are none yet; see `chm client create --help`"
    ]
    assert chm("pipeline", "get", "a/b").errors == [
        "no pipeline 'a/b': there are none yet; see `chm pipeline create --help`"
    ]


def test_creating_what_is_disabled_says_how_to_enable_it(acme: Chm) -> None:
    acme("pipeline", "update", "acme/orders", "--external-id", "o1")
    acme("pipeline", "disable", "acme/orders")
    for words in (("Orders",), ("Other", "--slug", "orders"), ("Other", "--external-id", "o1")):
        answer = acme("pipeline", "create", "acme", *words, *NEW)
        assert answer.code == 2
        assert "is disabled; enable it with `chm pipeline enable acme/orders`" in answer.err
    acme("client", "disable", "acme")
    for words in (("Acme",), ("Other", "--slug", "acme")):
        answer = acme("client", "create", *words)
        assert answer.code == 2
        assert "is disabled; enable it with `chm client enable acme`" in answer.err


def test_a_name_that_differs_by_case_only_is_warned_of(chm: Chm) -> None:
    chm("client", "create", "Acme")
    twin = chm("client", "create", "ACME")
    assert (twin.code, twin.json["slug"]) == (0, "acme-2")
    assert twin.errors == ["warning: client acme has the same name in another case"]
    assert chm("client", "create", "Bolt").errors == []
    assert chm("client", "update", "bolt", "--name", "aCMe").errors == [
        "warning: client acme has the same name in another case",
        "warning: client acme-2 has the same name in another case",
    ]
    assert chm("client", "disable", "bolt").errors == []


def test_every_field_that_may_be_sent_has_an_option(chm: Chm) -> None:
    """Whatever field a noun gains, the commands that create and change it gain too."""
    flags = {"pipeline_type": "--type", "rule_type": "--type", "external_run_id": "--run", "rows_processed": "--rows"}
    flags |= {"error_message": "--error", "source_url": "--url"}
    for words, shape, without in (
        (("client", "update"), ClientChanges, {"is_active", "maintenance"}),
        (("pipeline", "create"), NewPipelineOfClient, {"name", "is_active", "maintenance"}),
        (("pipeline", "update"), PipelineChanges, {"is_active", "maintenance"}),
        (("rule", "create"), NewAlertRule, {"client_id", "pipeline_id", "is_enabled"}),
        (("rule", "update"), AlertRuleChanges, {"client_id", "pipeline_id", "is_enabled"}),
        (("run", "record"), NewRun, set()),
    ):
        shown = chm(*words, "--help").out
        for name in set(shape.known_fields()) - without:
            assert f"{flags.get(name, '--' + name.replace('_', '-'))} " in shown, (words, name)


def test_maintenance_windows_are_added_listed_and_removed(acme: Chm) -> None:
    weekly = ("--cron", "0 2 * * 0", "--minutes", "120", "--timezone", "Europe/Berlin", "--reason", "Backup")
    added = acme("maintenance", "add", "acme", *weekly).json
    assert (added["about"], added["number"], added["when"]) == ("acme", 1, "0 2 * * 0 Europe/Berlin, for 120 min")
    assert acme("maintenance", "add", "acme/orders", "--end", "4h").json["state"] == "open"
    local = ("--start", "2030-07-01T22:00", "--end", "2030-07-02T00:00", "--timezone", "Europe/Berlin")
    planned = acme("maintenance", "add", "acme/orders", *local).json
    assert (planned["state"], planned["when"]) == ("planned", "2030-07-01 20:00 UTC to 2030-07-01 22:00 UTC")
    found = acme("maintenance", "list").json
    assert [(row["about"], row["number"]) for row in found] == [("acme", 1), ("acme/orders", 1), ("acme/orders", 2)]
    assert acme("maintenance", "remove", "acme/orders", "1").json["state"] == "open"
    assert [row["when"] for row in acme("maintenance", "list", "acme/orders").json] == [planned["when"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "acme"), "--end: is required; or --cron and --minutes"),
        (("add", "acme", "--cron", "0 2 * * 0"), "maintenance: window 1: minutes: is required beside cron"),
        (
            ("add", "acme", "--cron", "0 2 * * 0", "--minutes", "5", "--end", "4h"),
            "has no meaning beside start and end",
        ),
        (("add", "acme", "--start", "4h", "--end", "2h"), "window 1: end: must be after start"),
        (("remove", "acme", "1"), "no maintenance window 1 of acme; see `chm maintenance list acme`"),
    ],
)
def test_what_is_wrong_with_a_maintenance_window_is_said(acme: Chm, words: tuple[str, ...], said: str) -> None:
    found = acme("maintenance", *words)
    assert (found.code, said in " ".join(found.err.split())) == (2, True), found.err
