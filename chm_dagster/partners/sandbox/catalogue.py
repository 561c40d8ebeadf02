"""Who lives in the sandbox's world: made-up clients, their pipelines, and the habits that make them worth watching.

Pipeline `i` is the same whatever the number of pipelines asked for, so a larger world only adds to a smaller one.
"""

import dataclasses
import enum
import hashlib

from chm_dagster.domain.inventory import PipelineType, Platform

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
    """How a pipeline tends to behave."""

    HEALTHY = "healthy"
    FLAKY = "flaky"
    BROKEN = "broken"
    SLOW = "slow"
    CANCELED = "canceled"
    SKIPPING = "skipping"
    REOPENING = "reopening"


@dataclasses.dataclass(frozen=True, slots=True)
class SandboxPipeline:
    """One pipeline of the world. `offset_us` is where its slots lie within the period; `salt` feeds its dice.

    `span_us` is how long after its slot a run can still change; listings of recent changes rely on it.
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

# Word lists read better as words than as one literal a line, hence the silenced rule.
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
    """A run's typical duration, and the most time from its slot to its last change, both in microseconds."""
    if habit is Habit.SLOW:
        typical = min(period_us, 60 * MINUTE_US) * 4 // 5
        longest = typical * 5 // 2
    else:
        typical = min(period_us // 4, 15 * MINUTE_US)
        longest = typical * 3 // 2
    if habit is Habit.REOPENING:
        longest = 2 * longest + RERUN_DELAY_US
    return typical, JITTER_US + max(LATENESS_US, longest)
