"""The sandbox's fictional clients and pipelines, how each behaves, and the errors of its failed runs.

Pipeline `i` is the same whatever the number of pipelines, so a larger world only adds to a smaller one.
"""

import dataclasses
import enum
import hashlib

from chm_dagster.domain.pipelines import PipelineType, Platform

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
DAY_US = 24 * 60 * MINUTE_US

JITTER_US = 20 * SECOND_US
"""A scheduled run starts up to this much after its slot (less for short periods)."""
LATENESS_US = 90 * SECOND_US
"""A run becomes visible up to this much after it has started."""
RERUN_DELAY_US = 12 * MINUTE_US
"""A failed run is re-run at most this much after it has failed."""


class Habit(enum.StrEnum):
    """The typical behavior of a pipeline."""

    HEALTHY = "healthy"
    FLAKY = "flaky"
    BROKEN = "broken"
    SLOW = "slow"
    CANCELED = "canceled"
    SKIPPING = "skipping"
    REOPENING = "reopening"


@dataclasses.dataclass(frozen=True, slots=True)
class SandboxPipeline:
    """One pipeline. `offset_us` is the position of its slots within the period; `salt` seeds its random numbers.

    `span_us` is how long after its slot a run can still change; listings of recent changes depend on it.
    """

    index: int
    external_id: str
    name: str
    client_name: str
    platform: Platform
    pipeline_type: PipelineType
    habit: Habit
    period_us: int
    offset_us: int
    typical_us: int
    span_us: int
    salt: int

    @property
    def period_seconds(self) -> float:
        """Time between two runs, in seconds."""
        return self.period_us / SECOND_US


_P, _T, _H = Platform, PipelineType, Habit
_CLIENTS = (
    "Amberwick Retail",
    "Brindlemoor Logistics",
    "Cobaltfen Energy",
    "Dunmarrow Health",
    "Elderquay Travel",
    "Fennimarsh Media",
)
# Client, name, platform, type, period in minutes, habit. The three broken ones sit at indices that differ modulo 3,
# so that they break and heal at different times and two of them are broken at any moment.
_CATALOGUE: tuple[tuple[int, str, Platform, PipelineType, int, Habit], ...] = (
    (0, "orders_sync", _P.AIRBYTE, _T.INGESTION, 2, _H.HEALTHY),
    (0, "inventory_load", _P.AIRFLOW, _T.INGESTION, 30, _H.FLAKY),
    (0, "dbt_daily_marts", _P.DBT, _T.TRANSFORM, 1440, _H.HEALTHY),
    (0, "price_feed_export", _P.CRON, _T.EXPORT, 60, _H.SKIPPING),
    (1, "shipment_events", _P.VENDOR_API, _T.INGESTION, 5, _H.REOPENING),
    (1, "carrier_rates_sync", _P.FIVETRAN, _T.INGESTION, 360, _H.HEALTHY),
    (1, "dbt_hourly_marts", _P.DBT, _T.TRANSFORM, 60, _H.FLAKY),
    (1, "delivery_sla_checks", _P.DAGSTER, _T.QUALITY, 30, _H.HEALTHY),
    (2, "meter_readings_load", _P.AIRFLOW, _T.INGESTION, 15, _H.HEALTHY),
    (2, "tariff_sync", _P.PREFECT, _T.INGESTION, 240, _H.BROKEN),
    (2, "grid_forecast", _P.AIRFLOW, _T.TRANSFORM, 60, _H.SLOW),
    (2, "regulator_export", _P.CRON, _T.EXPORT, 1440, _H.HEALTHY),
    (3, "appointments_sync", _P.PREFECT, _T.INGESTION, 10, _H.HEALTHY),
    (3, "claims_import", _P.AIRBYTE, _T.INGESTION, 120, _H.BROKEN),
    (3, "patient_dedupe", _P.DAGSTER, _T.TRANSFORM, 180, _H.CANCELED),
    (3, "data_quality_suite", _P.DAGSTER, _T.QUALITY, 60, _H.HEALTHY),
    (4, "bookings_sync", _P.FIVETRAN, _T.INGESTION, 15, _H.HEALTHY),
    (4, "fare_scraper", _P.CRON, _T.INGESTION, 30, _H.FLAKY),
    (4, "revenue_marts", _P.DBT, _T.TRANSFORM, 720, _H.REOPENING),
    (4, "loyalty_feed_export", _P.VENDOR_API, _T.EXPORT, 60, _H.CANCELED),
    (5, "ad_spend_sync", _P.FIVETRAN, _T.INGESTION, 60, _H.HEALTHY),
    (5, "clickstream_load", _P.AIRFLOW, _T.INGESTION, 30, _H.SLOW),
    (5, "site_healthcheck", _P.VENDOR_API, _T.HEALTHCHECK, 60, _H.SKIPPING),
    (5, "audience_segments", _P.PREFECT, _T.TRANSFORM, 360, _H.BROKEN),
)

# Word lists are easier to read as one text than with one literal per line, hence the silenced rule.
_FRONT = "Alder Bram Carrow Dellin Esker Farrow Gorse Hazel Inver Juniper Kestle Lark Merrow Nether Orrin".split()  # noqa: SIM905
_BACK = "beck fell garth holm ings keld lund nab pike rigg scar syke thwaite wath wyke wold".split()  # noqa: SIM905
_SECTORS = "Retail Logistics Energy Health Travel Media Foods Insurance Mobility Education".split()  # noqa: SIM905
_SUBJECTS = (  # noqa: SIM905
    "orders customers invoices payments shipments inventory products prices refunds subscriptions "
    "sessions clicks campaigns leads tickets contracts employees vehicles sensors ledgers"
).split()
_ACTIONS: tuple[tuple[str, tuple[Platform, ...], PipelineType], ...] = (
    ("sync", (_P.AIRBYTE, _P.FIVETRAN, _P.PREFECT, _P.VENDOR_API), _T.INGESTION),
    ("marts", (_P.DBT, _P.AIRFLOW, _P.DAGSTER, _P.DBT), _T.TRANSFORM),
    ("checks", (_P.DAGSTER, _P.AIRFLOW, _P.DBT, _P.PREFECT), _T.QUALITY),
    ("export", (_P.CRON, _P.AIRFLOW, _P.VENDOR_API, _P.CRON), _T.EXPORT),
)
_PER_CLIENT = 40
_SPARSE_MINUTES = (360, 720, 1440)
_HABIT_MIX = (
    *(_H.HEALTHY,) * 9,
    *(_H.FLAKY, _H.BROKEN, _H.SLOW, _H.CANCELED, _H.SKIPPING, _H.SKIPPING, _H.REOPENING),
)


def build(seed: int, count: int, period_us: int | None) -> list[SandboxPipeline]:
    """The first `count` pipelines. With `period_us` all share that period, their slots spread evenly over it."""
    return [_pipeline(seed, index, count, period_us) for index in range(count)]


def _pipeline(seed: int, index: int, count: int, period_us: int | None) -> SandboxPipeline:
    salt = int.from_bytes(hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest(), "little")
    client, name, platform, kind, minutes, habit = _described(index, salt)
    period = minutes * MINUTE_US if period_us is None else period_us
    typical, span = _pace(period, habit)
    return SandboxPipeline(
        index=index,
        external_id=f"{client.split()[0].lower()}-{name.replace('_', '-')}",
        name=name,
        client_name=client,
        platform=platform,
        pipeline_type=kind,
        habit=habit,
        period_us=period,
        offset_us=salt % period if period_us is None else index * period // count,
        typical_us=typical,
        span_us=span if period_us is None else 0,
        salt=salt,
    )


def _described(index: int, salt: int) -> tuple[str, str, Platform, PipelineType, int, Habit]:
    if index < len(_CATALOGUE):
        client, name, platform, kind, minutes, habit = _CATALOGUE[index]
        return _CLIENTS[client], name, platform, kind, minutes, habit
    number, place = divmod(index - len(_CATALOGUE), _PER_CLIENT)
    action, platforms, kind = _ACTIONS[place % len(_ACTIONS)]
    subject = _SUBJECTS[(place // len(_ACTIONS) + 10 * (number % 2)) % len(_SUBJECTS)]
    platform = platforms[(salt >> 8) % len(platforms)]
    minutes = _SPARSE_MINUTES[(salt >> 16) % len(_SPARSE_MINUTES)]
    habit = _HABIT_MIX[(salt >> 24) % len(_HABIT_MIX)]
    return _client_name(number), f"{subject}_{action}", platform, kind, minutes, habit


def _client_name(number: int) -> str:
    again, pair = divmod(number, len(_FRONT) * len(_BACK))
    front, back = divmod(pair, len(_BACK))
    suffix = str(again + 1) if again else ""
    return f"{_FRONT[front]}{_BACK[back]}{suffix} {_SECTORS[number % len(_SECTORS)]}"


def _pace(period_us: int, habit: Habit) -> tuple[int, int]:
    """A run's typical duration, and the longest time from its slot to its last change, both in microseconds."""
    if habit is Habit.SLOW:
        typical = min(period_us, 60 * MINUTE_US) * 4 // 5
        longest = typical * 5 // 2
    else:
        typical = min(period_us // 4, 15 * MINUTE_US)
        longest = typical * 3 // 2
    if habit is Habit.REOPENING:
        longest = 2 * longest + RERUN_DELAY_US
    return typical, JITTER_US + max(LATENESS_US, longest)


# --- the error messages of failed runs, several lines each, as real tools write them

_PYTHON = (
    """Traceback (most recent call last):
  File "/app/pipelines/{name}.py", line {line}, in load_batch
    cursor.copy_from(buffer, table)
psycopg.errors.NotNullViolation: null value in column "{column}" of relation "{name}" violates not-null constraint
DETAIL:  Failing row contains ({rows}, null, 2024-01-31, EUR).""",
    """Traceback (most recent call last):
  File "/app/pipelines/{name}.py", line {line}, in fetch_page
    response.raise_for_status()
HTTPStatusError: Server error '503 Service Unavailable' for url 'https://api.example.com/v2/{name}'
Task exited with return code 1 after 3 tries.""",
    """Task {name} was killed: out of memory
  limit: 4096 MiB, in use: 4095 MiB, rows held: {rows}
  hint: read the source in smaller batches""",
)
_DBT = (
    """Database Error in model {name} (models/marts/{name}.sql)
  column "{column}" does not exist
  LINE {line}:     sum({column}) as total
  compiled code at target/run/marts/{name}.sql
Done. PASS=41 WARN=1 ERROR=1 SKIP=6 TOTAL=49""",
    """Failure in test unique_{name}_{column} (models/marts/schema.yml)
  Got {rows} results, configured to fail if != 0
  compiled code at target/compiled/marts/schema.yml/unique_{name}_{column}.sql
Done. PASS=48 WARN=0 ERROR=1 SKIP=0 TOTAL=49""",
    """Database Error in model {name} (models/marts/{name}.sql)
  canceling statement due to statement timeout
  after 1800 s; 1 of 49 models did not finish""",
)
_SYNC = (
    """Sync failed: source connector stopped with exit code 1
  stream: {name}
  cause: 429 Too Many Requests, quota of 10000 calls an hour is used up
  records emitted before the failure: {rows}""",
    """Sync failed: destination refused the batch
  stream: {name}, batch {line}
  cause: value too long for column "{column}" (limit 255)
  action: widen the column or turn on truncation""",
    """Sync failed: could not sign in to the source
  stream: {name}
  cause: 401 invalid_grant, the refresh token has expired
  action: authorize the connection again""",
)
_SHELL = (
    """{name}.sh: line {line}: /mnt/outbox/{name}.csv: No space left on device
{name}.sh: {rows} rows written before the error
exit status 1""",
    """sftp: Connection closed by remote host
sftp: could not upload /mnt/outbox/{name}.csv ({rows} rows)
exit status 255""",
    """{name}.sh: line {line}: {column}: unbound variable
exit status 127""",
)
_BY_PLATFORM = {
    Platform.DBT: _DBT,
    Platform.AIRBYTE: _SYNC,
    Platform.FIVETRAN: _SYNC,
    Platform.VENDOR_API: _SYNC,
    Platform.CRON: _SHELL,
}
_COLUMNS = ("customer_id", "amount", "currency", "country_code", "updated_at")


def error_message(platform: Platform, name: str, chance: float, rows: int) -> str:
    """An error message typical of `platform`. `chance` in [0, 1) selects it: equal chances give equal messages."""
    texts = _BY_PLATFORM.get(platform, _PYTHON)
    pick = int(chance * len(texts) * len(_COLUMNS))
    column = _COLUMNS[pick % len(_COLUMNS)]
    return texts[pick // len(_COLUMNS)].format(name=name, column=column, rows=rows, line=20 + pick * 7)
