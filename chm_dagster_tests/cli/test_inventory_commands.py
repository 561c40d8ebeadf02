"""`chm client`, `chm pipeline`, `chm rule`."""

import pytest

from chm_dagster_tests.cli.conftest import Chm

CLIENT = ["id", "slug", "name", "is_active", "created_at", "updated_at"]
PIPELINE = [
    *("key", "id", "client_id", "client_slug", "client_name", "slug", "name", "platform", "connection", "external_id"),
    *("pipeline_type", "environment", "description", "is_active", "schedule_cron", "schedule_timezone"),
    *("grace_minutes", "max_runtime_minutes", "synced_through", "created_at", "updated_at"),
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


def test_things_go_by_slug_and_by_id(acme: Chm) -> None:
    client, pipeline = acme("client", "get", "acme").json, acme("pipeline", "get", "acme/orders").json
    assert acme("client", "get", client["id"]).json == client
    assert acme("pipeline", "get", pipeline["id"]).json == pipeline
    assert list(pipeline) == PIPELINE
    assert len(acme("pipeline", "list", "--client", client["id"]).json) == 2


def test_a_person_reads_what_was_done_in_one_line(chm: Chm) -> None:
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


def test_a_list_is_read_to_its_end_or_to_the_limit(chm: Chm) -> None:
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


def test_a_pipeline_keeps_what_is_not_named_and_loses_what_is_cleared(acme: Chm) -> None:
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


def test_a_rule_lives_by_its_id_or_the_end_of_it(acme: Chm) -> None:
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


def test_rules_are_found_by_what_they_are_about(acme: Chm) -> None:
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
        ("client update acme", "options: nothing to change; give one of those that --help lists"),
        ("pipeline get acme/order", "no pipeline 'acme/order'; did you mean acme/orders?"),
        ("pipeline get feed", "no pipeline 'feed'; did you mean cafe-nord/feed?"),
        ("pipeline create acm X --platform custom --type export", "no client 'acm'; did you mean acme?"),
        ("pipeline update acme/orders --clear nam", "nam: unknown field; did you mean name?"),
        ("pipeline update acme/orders --clear name", "name: cannot be empty; leave it out to keep it as it is"),
        (
            "pipeline update acme/orders --name x --clear name",
            "name: is set and cleared at once; leave one of the two out",
        ),
        (
            "pipeline update acme/orders --grace-minutes -1",
            "grace_minutes: out of range; send a whole number from 0 to",
        ),
        (
            "pipeline update acme/orders --schedule-cron daily",
            "schedule_cron: has 1 fields; send five, such as 0 6 * * 1-5",
        ),
        ("pipeline list --client nobody", "no client 'nobody': name it by its slug"),
        ("rule create --type on_failure --channel slack --destination x", "--client: missing, as is --pipeline"),
        ("rule get abcd1234", "no alert rule 'abcd1234': give its id, or the end of it"),
        ("rule get 00000000-0000-0000-0000-000000000000", "no alert rule '00000000"),
        (
            "rule create --client acme --type on_failure --channel slack --destination x --muted-until soon",
            "muted_until: not a time;",
        ),
    ],
)
def test_a_wrong_word_is_answered_with_one_line_that_says_what_would_be_right(acme: Chm, words: str, said: str) -> None:
    answer = acme(*words.split())
    assert (answer.code, answer.out) == (2, "")
    assert len(answer.errors) == 1
    assert answer.errors[0].startswith(said)


def test_an_id_that_two_rules_end_in_is_not_guessed(acme: Chm) -> None:
    acme("rule", "create", "--client", "acme", *TO_SLACK)
    acme("rule", "create", "--client", "cafe-nord", *TO_SLACK)
    ids = [rule["id"] for rule in acme("rule", "list").json]
    # Too short an end names nothing, rather than whatever comes first.
    assert acme("rule", "get", ids[0][-3:]).code == 2


def test_the_first_client_of_all_is_asked_for_where_there_is_none(chm: Chm) -> None:
    assert chm("client", "get", "acme").errors == [
        "no client 'acme': there are none yet; see `chm client create --help`"
    ]
    assert chm("pipeline", "get", "a/b").errors == [
        "no pipeline 'a/b': there are none yet; see `chm pipeline create --help`"
    ]
