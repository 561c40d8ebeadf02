"""The state of syncing a pipeline: how far its runs are known, why it cannot be read, when to try again; and the report
of an ingestion, which counts every record of every pipeline exactly once. Pure.

The watermark is where the next sync starts reading. It is counted on the clock that stamps the partner's records, and
that clock can only be read from the records themselves: the `Date` header may come from a proxy whose clock is ahead,
and CHM's own clock may be wrong. So it never passes the earliest of the three.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from chm_dagster.domain.runs import Counts
from chm_dagster.domain.schedule import slots_of
from chm_dagster.domain.values import reason_text
from chm_dagster.errors import (
    AuthError,
    ChmError,
    ConfigError,
    DeadlineExceeded,
    NotAtPartner,
    RateLimited,
    RemoteError,
    SchemaDrift,
    Transient,
)

MAX_SYNC_ERROR_CHARS = 1_000
SKEW_TOLERANCE = timedelta(minutes=2)
"""How far two clocks may be apart before CHM reports it."""
SKEW_DOUBTED = timedelta(minutes=15)
"""A clock that is further off than runs may be late, unless more is allowed, does not say whether one is."""
MAX_DOUBT_CHARS = 500
READ_AGAIN = timedelta(days=1)
"""How far back the watermark stays for records that could not be understood: each sync reads them once more."""
FRESH_FOR = timedelta(minutes=30)
"""How long at least a complete sync says how a pipeline is."""
_SLOWEST_SYNC = timedelta(minutes=15)
_SLOTS_COMPARED = 2_500
_SHORTEST_WAIT, _LONGEST_WAIT = timedelta(minutes=1), timedelta(minutes=15)


class SyncErrorCode(enum.StrEnum):
    """Why a pipeline cannot be read. `clock_skew` alone is a warning: the pipeline is read all the same."""

    CREDENTIALS_REFUSED = "credentials_refused"
    UNREACHABLE = "unreachable"
    RATE_LIMITED = "rate_limited"
    NOT_AT_PARTNER = "not_at_partner"
    BAD_RESPONSE = "bad_response"
    CONFIGURATION = "configuration"
    CLOCK_SKEW = "clock_skew"
    DEADLINE = "deadline"


_CODES: tuple[tuple[type[ChmError], SyncErrorCode], ...] = (
    (AuthError, SyncErrorCode.CREDENTIALS_REFUSED),
    (RateLimited, SyncErrorCode.RATE_LIMITED),
    (Transient, SyncErrorCode.UNREACHABLE),
    (NotAtPartner, SyncErrorCode.NOT_AT_PARTNER),
    (DeadlineExceeded, SyncErrorCode.DEADLINE),
    (ConfigError, SyncErrorCode.CONFIGURATION),
)


def error_code(error: ChmError) -> SyncErrorCode:
    """The kind of an error that kept a pipeline from being read."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), SyncErrorCode.BAD_RESPONSE)


def partner_error(code: SyncErrorCode, message: str) -> RemoteError:
    """An error of this kind, as `error_code` knows it."""
    kind = next((kind for kind, known in _CODES if known is code), SchemaDrift)
    return kind(message) if issubclass(kind, RemoteError) else RemoteError(message)


def next_attempt(failing_since: datetime, attempted_at: datetime) -> datetime:
    """When scheduled syncs try a failing pipeline again: after 1, 2, 4, 8 and then every 15 minutes.

    A pipeline that has failed for as long as it takes to double the wait waits for just as long again.
    """
    return attempted_at + min(max(attempted_at - failing_since, _SHORTEST_WAIT), _LONGEST_WAIT)


@dataclasses.dataclass(frozen=True, slots=True)
class StreamFacts:
    """What one complete reading of a stream of records showed.

    `server_time` is the partner's `Date` header in the first response, None if it had none. `first_request` and
    `last_request` are when these started, by CHM's clock. `newest_version` is the newest time that any record bore and
    that had passed by CHM's clock, None if none bore one; `has_untimed`: there were records, but none bears a time.
    """

    server_time: datetime | None
    first_request: datetime
    last_request: datetime
    newest_version: datetime | None
    has_untimed: bool = False


def watermark(facts: StreamFacts, overlap: timedelta, proven: datetime | None) -> datetime | None:
    """Up to where the stream's records are known, by the clock that stamps them; None if nothing shows that clock.

    `proven` is a watermark of the same connection from an earlier sync: the records' clock was past it then.
    Records that were stamped up to `overlap` before they became visible are covered.
    """
    clocks = [facts.first_request, *([facts.server_time] if facts.server_time else [])]
    # A record on the last page may have been stamped while the first pages had been read already.
    reading = facts.last_request - facts.first_request
    shown = [] if facts.newest_version is None else [facts.newest_version - reading]
    if proven is not None:
        shown.append(proven + overlap)
    if not shown and not facts.has_untimed:
        return None
    return min([*clocks, *([max(shown)] if shown else [])]) - overlap


def held_back(through: datetime | None, before: datetime | None) -> tuple[datetime | None, bool]:
    """The watermark after a sync with records that could not be understood: where it was `before`, for a day at most.

    And whether some of these records may lie before it, so that no later sync reads them again.
    """
    if through is None:
        return None, False
    earliest = through - READ_AGAIN
    return (earliest, True) if before is None or before < earliest else (min(before, through), False)


@dataclasses.dataclass(frozen=True, slots=True)
class Clocks:
    """How far a partner's clock is `apart` from ours, and the warning about it if that is more than requests take."""

    apart: timedelta = timedelta(0)
    warning: str | None = None

    @property
    def doubt(self) -> str | None:
        """Why the times of runs do not say how their pipeline is; None: they do."""
        return self.warning if abs(self.apart) > SKEW_DOUBTED else None


def clocks(server_time: datetime | None, now: datetime, ahead: Sequence[timedelta]) -> Clocks:
    """What the partner's `Date` and how far ends of runs lay `ahead` of our clock show about the partner's."""
    skew = clock_skew(server_time, now)
    if skew is not None:
        return Clocks(skew, f"the partner's Date header is {_apart(skew)} CHM's clock; set both clocks by NTP")
    most = max(ahead, default=timedelta(0))
    if most <= SKEW_TOLERANCE:
        return Clocks()
    return Clocks(most, f"runs ended up to {_apart(most)} CHM's clock; set both clocks by NTP")


def _apart(skew: timedelta) -> str:
    minutes = round(abs(skew).total_seconds() / 60)
    return f"{minutes} minutes {'ahead of' if skew > timedelta(0) else 'behind'}"


def doubt_about(rejected: int, reasons: Sequence[str], unknown_statuses: Mapping[str, int]) -> str | None:
    """Why the records of a sync do not say how their pipeline is; None: they do.

    `reasons` are those of some rejections; `unknown_statuses` counts the words that CHM does not know.
    """
    found = []
    if rejected:
        why = "; ".join(dict.fromkeys(filter(None, map(reason_text, reasons))))
        found.append(f"{_records(rejected)} of the last sync {_were(rejected)} rejected: {why}")
    if unknown := sum(unknown_statuses.values()):
        words = ", ".join(repr(reason_text(word) or "") for word in sorted(unknown_statuses))
        found.append(f"{_records(unknown)} of the last sync {_were(unknown)} of unknown status: {words}")
    return one_doubt(*found)


def one_doubt(*doubts: str | None) -> str | None:
    """The doubts in one text that fits into the ledger; None if there are none."""
    text = "; ".join(filter(None, doubts))
    return (text if len(text) <= MAX_DOUBT_CHARS else text[: MAX_DOUBT_CHARS - 1] + "…") or None


def _records(number: int) -> str:
    return "1 record" if number == 1 else f"{number:,} records"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def fresh_for(sync_cron: str) -> timedelta:
    """How long a complete sync says how a pipeline is, if syncs start by this schedule (UTC): until two were missed.

    The longest time that three slots in a row take, and how long a sync may take; half an hour at least.
    """
    slots, slot = slots_of(sync_cron, None), datetime(2024, 1, 1, tzinfo=UTC)
    found: list[datetime] = []
    while len(found) < _SLOTS_COMPARED and (following := slots.after(slot)) is not None:
        slot = following
        found.append(slot)
    longest = max((later - earlier for earlier, later in pairwise(found[::2])), default=timedelta(0))
    return max(longest + _SLOWEST_SYNC, FRESH_FOR)


def clock_skew(server_time: datetime | None, now: datetime) -> timedelta | None:
    """How far the partner's clock is ahead of ours (negative: behind), if that is more than requests take."""
    if server_time is None or abs(server_time - now) <= SKEW_TOLERANCE:
        return None
    return server_time - now


SAMPLES = 10
"""Rejections quoted in a report, for each pipeline; all of them are in the landing."""

_TIMES = ("newest_run", "synced_through")


@dataclasses.dataclass(slots=True)
class PipelineReport:
    """The outcomes of one pipeline's records.

    `error` is set if the partner could not be read to the end, with its kind in `error_code`. `deferred`: the partner
    was not asked, because the pipeline has failed lately or because another sync is reading it. `warning` is about
    clocks that disagree, `unread` about an unfinished run that could not be looked up.
    """

    key: str
    connection: str
    fetched: int = 0
    counts: Counts = dataclasses.field(default_factory=Counts)
    unknown_statuses: dict[str, int] = dataclasses.field(default_factory=dict)
    rejections: list[str] = dataclasses.field(default_factory=list)
    newest_run: datetime | None = None
    synced_through: datetime | None = None
    error: str | None = None
    error_code: SyncErrorCode | None = None
    warning: str | None = None
    unread: str | None = None
    deferred: bool = False

    @property
    def accounted_for(self) -> bool:
        """Whether every record that was fetched ended in exactly one outcome."""
        return self.fetched == self.counts.total

    @property
    def warnings(self) -> list[str]:
        """What is wrong although the partner was read."""
        return [text for text in (self.warning, self.unread) if text is not None]

    def discard(self) -> None:
        """Reset the counts, because nothing was written."""
        self.fetched, self.counts, self.synced_through = 0, Counts(), None
        self.rejections.clear()
        self.unknown_statuses.clear()

    def fail(self, error: str, code: SyncErrorCode | None) -> None:
        """Note why the pipeline could not be read; `code` is None where the partner is not to blame."""
        self.error, self.error_code = error, code


@dataclasses.dataclass(slots=True)
class IngestReport:
    """The reports of all pipelines that were asked for, by key."""

    started_at: datetime
    pipelines: dict[str, PipelineReport] = dataclasses.field(default_factory=dict)
    unwritten: list[str] = dataclasses.field(default_factory=list)
    """Connections whose records landed but could not be written."""

    @property
    def failed(self) -> list[PipelineReport]:
        """The pipelines whose partner could not be read."""
        return [p for p in self.pipelines.values() if p.error is not None]

    @property
    def fetched(self) -> int:
        """All records that partners sent."""
        return sum(p.fetched for p in self.pipelines.values())

    @property
    def counts(self) -> Counts:
        """The outcomes of all records."""
        counts = Counts()
        for pipeline in self.pipelines.values():
            counts.add(pipeline.counts)
        return counts

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "IngestReport":
        """Read a report that was saved as JSON."""
        report = cls(datetime.fromisoformat(data["started_at"]), unwritten=data["unwritten"])
        for key, raw in data["pipelines"].items():
            read = {name: raw[name] and datetime.fromisoformat(raw[name]) for name in _TIMES}
            read["counts"] = Counts(**raw["counts"])
            read["error_code"] = raw["error_code"] and SyncErrorCode(raw["error_code"])
            report.pipelines[key] = PipelineReport(**{**raw, **read})
        return report
