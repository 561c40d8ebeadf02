"""Settings: what is noticed, what is said about it, and what is never shown."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chm_dagster.errors import ConfigError
from chm_dagster.settings import KNOWN, Settings
from chm_dagster.warehouse.engine import make_engine

SECRET = "s3cr3t-of-nobody"


def problems(**variables: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        Settings.from_env(variables)
    return str(raised.value).splitlines()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CHM_DB_URL", "CHM_DATABASE_URL"),
        ("CHM_DATABASE", "CHM_DATABASE_URL"),
        ("CHM_DAGSTER_URL", "CHM_DAGSTER_DATABASE_URL"),
        ("CHM_API_PRT", "CHM_API_PORT"),
        ("CHM_PARTNER_URL", "CHM_PARTNER_API_BASE_URL"),
        ("CHM_CRON", "CHM_SYNC_CRON"),
    ],
)
def test_a_misspelt_setting_is_noticed_and_the_right_one_is_suggested(name: str, meant: str) -> None:
    (problem,) = problems(**{name: SECRET})
    assert problem.startswith(f"{name} is not a setting of CHM; did you mean CHM_")
    assert meant in problem
    assert SECRET not in problem


def test_a_setting_that_resembles_none_is_noticed_too() -> None:
    assert problems(CHM_XYZZYX="1") == ["CHM_XYZZYX is not a setting of CHM; unset it"]


def test_the_old_name_of_a_setting_names_the_new_one() -> None:
    assert problems(CHM_SWEEP_CRON="* * * * *") == ["CHM_SWEEP_CRON is now called CHM_SYNC_CRON"]


def test_variables_that_partners_yaml_names_may_be_called_anything(tmp_path: Path) -> None:
    file = tmp_path / "partners.yaml"
    file.write_text("connections: {a: {platform: airflow, credentials: {token: CHM_ACME_TOKEN}}}")
    own = {"CHM_PARTNERS_FILE": str(file), "CHM_ACME_TOKEN": SECRET}
    assert Settings.from_env(own).partners_file == file
    assert problems(**own, CHM_ACME_TOKE=SECRET) == [
        "CHM_ACME_TOKE is not a setting of CHM; did you mean CHM_API_TOKEN?"
    ]


def test_what_chm_and_compose_set_themselves_is_no_mistake() -> None:
    own = {"CHM_STACK_ID": "1", "CHM_POSTGRES_PASSWORD": "x", "CHM_DAGSTER_POSTGRES_PASSWORD": "y"}
    assert Settings.from_env(own) == Settings.from_env({})


def test_every_mistake_is_shown_at_once() -> None:
    found = problems(
        CHM_API_PORT="x", CHM_SYNC_CRON="often", CHM_SANDBOX="maybe", CHM_DAGSTER_PREFIX="a-b", CHM_HOME=" "
    )
    assert len(found) == 5


def test_a_partners_file_that_is_a_folder_or_missing_is_distinguished(tmp_path: Path) -> None:
    assert problems(CHM_PARTNERS_FILE=str(tmp_path)) == ["CHM_PARTNERS_FILE is a folder; name the file itself"]
    assert problems(CHM_PARTNERS_FILE=str(tmp_path / "x")) == ["CHM_PARTNERS_FILE names a file that does not exist"]


def test_either_database_may_be_set_alone() -> None:
    # A code location in somebody else's Dagster knows only CHM's, a web server in a container only Dagster's.
    assert Settings.from_env({"CHM_DATABASE_URL": "postgresql://h/d"}).dagster_database_url is None
    assert Settings.from_env({"CHM_DAGSTER_DATABASE_URL": "postgresql://h/d"}).database_url is None


@pytest.mark.parametrize("hosts", ["http://x", "a b", "x:3000", "-x", "ä.example"])
def test_a_public_host_is_a_name_and_nothing_else(hosts: str) -> None:
    assert "not a list of host names" in problems(CHM_PUBLIC_HOSTS=hosts)[0]


def test_public_hosts_are_compared_in_lower_case() -> None:
    settings = Settings.from_env({"CHM_PUBLIC_HOSTS": "CHM.example.com, other.example.com"})
    assert settings.public_hosts == {"chm.example.com", "other.example.com"}


BROKEN = [
    f"postgresql://chm@db:{SECRET}/chm",
    f"postgresql://chm:pw@db:{SECRET}",
    f"postgresql://chm:{SECRET}/x@db:5432/chm",
    f"postgresql://chm:{SECRET}#x@db:5432/chm",
    f"postgresql://chm:{SECRET}?x@db:5432/chm",
    f"postgresql://chm:a@{SECRET}:b@db/chm",
    f"postgresql://[chm:{SECRET}@db/chm",
    f"postgresql://chm:{SECRET}@db:99999999/chm",
    f"postgresql:chm:{SECRET}",
    f"mysql://chm:{SECRET}@db/chm",
    SECRET,
]


@pytest.mark.parametrize("name", ["CHM_DATABASE_URL", "CHM_DAGSTER_DATABASE_URL"])
@pytest.mark.parametrize("url", BROKEN)
def test_no_part_of_a_broken_database_url_is_shown(name: str, url: str) -> None:
    shown = ""
    try:
        settings = Settings.from_env({name: url})
        shown = repr(settings)
        make_engine(settings.database_url or "postgresql://h/d").dispose()
    except ConfigError as error:
        shown += str(error)
        assert error.__cause__ is None or SECRET not in repr(error.__cause__)
    assert SECRET not in shown


@pytest.mark.parametrize(
    "url",
    [
        f"smtp://chm:{SECRET}/x@mail.example:587",
        f"smtp://chm:{SECRET}#x@mail.example:587",
        f"smtp://chm:{SECRET}?x@mail.example:587",
        f"smtp://chm:25/{SECRET}@mail.example",
        f"smtps://chm:25#{SECRET}@mail.example",
        f"smtps://chm:25?{SECRET}@mail.example",
        f"smtp://chm:{SECRET}@",
        f"smtp://chm:{SECRET}@mail.example:99999",
        f"smtp:chm:{SECRET}",
        f"smtp://[chm:{SECRET}@mail.example",
    ],
)
def test_a_mail_server_that_cannot_be_read_is_refused_without_showing_it(url: str) -> None:
    [problem] = problems(CHM_SMTP_URL=url)
    assert problem.startswith("CHM_SMTP_URL ")
    assert SECRET not in problem


@pytest.mark.parametrize("url", ["smtp://chm:a%2Fb%23c@h:587", "smtps://u:a@b:c@h/", "smtp+plain://127.0.0.1:25"])
def test_a_mail_server_is_read(url: str) -> None:
    assert Settings.from_env({"CHM_SMTP_URL": url}).smtp_url == url


@given(st.text("ab:/@?#[]%", max_size=12), st.text("ab:/@?#[]%", max_size=12))
def test_whatever_stands_around_a_secret_it_is_never_shown(before: str, after: str) -> None:
    url = f"postgresql://{before}{SECRET}{after}"
    try:
        settings = Settings.from_env({"CHM_DATABASE_URL": url})
        assert SECRET not in repr(settings)
        assert settings.database_url is not None
        make_engine(settings.database_url).dispose()
    except ConfigError as error:
        assert SECRET not in f"{error}{error.__cause__!r}"


def test_the_names_of_secrets_are_known_and_their_values_are_not_shown() -> None:
    secrets = {"CHM_DATABASE_URL": f"postgresql://u:{SECRET}@h/d", "CHM_API_TOKEN": SECRET * 2}
    secrets |= {"CHM_DAGSTER_DATABASE_URL": f"postgresql://u:{SECRET}@h/d", "CHM_PARTNER_API_TOKEN": SECRET}
    assert secrets.keys() <= KNOWN
    assert SECRET not in repr(Settings.from_env(secrets))


def test_addresses_of_apprise_go_by_their_names() -> None:
    settings = Settings.from_env({"CHM_APPRISE_URL_OPS_TEAMS": "discord://id/token"})
    assert settings.apprise_urls == {"OPS_TEAMS": "discord://id/token"}
    assert "token" not in repr(settings)
