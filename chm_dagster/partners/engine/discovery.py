"""What an API says about itself: whether it accepts our credentials, and which pipelines it has."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any

from chm_dagster.domain.pipelines import PipelineType, Platform
from chm_dagster.errors import AuthError, RemoteError, SchemaDrift
from chm_dagster.http.client import Response
from chm_dagster.http.failures import CircuitBreaker, StatusError
from chm_dagster.partners.engine.model import Access, Discover, ParentList, RequestTemplate, Version
from chm_dagster.partners.engine.pages import Pages
from chm_dagster.partners.engine.requests import ABSENT_STATUSES, Api
from chm_dagster.partners.engine.selectors import as_id, find, first, matches, matches_any, value_at
from chm_dagster.partners.port import Finding, Probe, SourcePipeline

logger = logging.getLogger(__name__)

LISTING_PAGES = 3
"""How many pages of pipelines a sync may request on average to know which pipelines exist."""
MAX_LISTING_PAGES = 20
"""A longer list is not read to its end, unless most of it are pipelines of ours."""

_TYPES = {kind.value: kind for kind in PipelineType}
_PLATFORMS = {platform.value: platform for platform in Platform}


async def discover(api: Api) -> list[SourcePipeline]:
    """All pipelines of the partner, by external id. Raises RemoteError."""
    spec = api.rest.discover
    if spec is None:
        return []
    breaker = CircuitBreaker(patience=api.http.policy.max_wait)
    parents: dict[str | None, Any] = {}
    if spec.parents is not None:
        async for item in _items(api, spec.parents, [spec.parents.id], breaker):
            parents[as_id(first(item, [spec.parents.id]))] = first(item, [spec.parents.name])
    found: dict[str, SourcePipeline] = {}
    async for item in _items(api, spec, spec.id, breaker):
        for pipeline in _pipelines(spec, item, parents):
            found[pipeline.external_id] = pipeline
    return [found[external_id] for external_id in sorted(found)]


async def _items(
    api: Api, request: Discover | ParentList, id_: list[str], breaker: CircuitBreaker
) -> AsyncGenerator[Any, None]:
    may_be_missing = isinstance(request, Discover) and request.missing_data_is_empty

    def key(item: Any) -> str | None:
        return as_id(first(item, id_))

    pages = Pages(api, request, request.data_selector, request.paginator, key=key, may_be_missing=may_be_missing)
    async for _, items in pages.read(breaker):
        for item in items:
            yield item


def _pipelines(spec: Discover, item: Any, parents: Mapping[str | None, Any]) -> Iterator[SourcePipeline]:
    """The pipelines of one item of the list."""
    for child in _children(spec, item):
        external_id = as_id(first(child, spec.id))
        if external_id is None:
            continue
        parent = parents.get(as_id(first(child, [spec.parents.of]))) if spec.parents else None
        name = first({**child, "parent": parent}, spec.name)
        yield SourcePipeline(
            external_id,
            name if isinstance(name, str) and name.strip() else external_id,
            _word(_TYPES, child, spec.type_selector) or spec.pipeline_type,
            not matches_any(child, spec.inactive),
            _word(_PLATFORMS, child, spec.platform_selector),
        )


class Listing:
    """Which of `targets` pipelines the partner lists. It is requested once in a sync, if anybody needs to know.

    A list of more than LISTING_PAGES pages is requested by some syncs only, so that it costs that much on average.
    """

    def __init__(self, api: Api, breaker: CircuitBreaker, targets: int, random: Callable[[], float]) -> None:
        self._api, self._breaker = api, breaker
        usual = LISTING_PAGES * api.rest.page_size
        share = usual / max(1, targets)
        self._most = max(MAX_LISTING_PAGES * api.rest.page_size, 2 * targets)
        self._is_due = api.rest.discover is not None and random() < share
        self._lock = asyncio.Lock()
        self._known: set[str] | None = None

    async def missing(self, external_ids: Sequence[str]) -> list[str]:
        """Those of the pipelines that the partner does not list; none if that is not known."""
        if not external_ids:
            return []
        async with self._lock:
            if self._is_due:
                self._is_due = False
                self._known = await self._listed()
        return [] if self._known is None else [one for one in external_ids if one not in self._known]

    async def _listed(self) -> set[str] | None:
        spec, known = self._api.rest.discover, set[str]()
        if spec is None:
            return None
        try:
            async for item in _items(self._api, spec, spec.id, self._breaker):
                for child in _children(spec, item):
                    known.update(found for one in spec.id if (found := as_id(first(child, [one]))) is not None)
                if len(known) > self._most:
                    logger.info("%s: has too many pipelines to check which of ours it knows", self._api.label)
                    return None
        except RemoteError as error:
            logger.info("%s; whether the partner knows all pipelines is unknown", error)
            return None
        return known


def _children(spec: Discover, item: Any) -> list[Any]:
    found = [item] if spec.each is None else [{**item, **child} for child in find(item, f"{spec.each}.*")]
    return [child for child in found if matches(child, spec.only)]


def _word(words: Mapping[str, Any], item: Any, selector: str | None) -> Any:
    word = value_at(item, selector)
    return words.get(word) if isinstance(word, str) else None


async def probe(api: Api, external_id: str | None = None) -> Probe:
    """Version, authentication and rights; each is checked if the one before is in order.

    The runs of `external_id` are requested if the partner has none of the paths that are checked otherwise.
    """
    findings = []
    if api.rest.check.version is not None:
        findings.append(await _version(api, api.rest.check.version))
    if all(finding.ok for finding in findings):
        findings.extend(await _access(api, external_id))
    ok = all(finding.ok for finding in findings)
    detail = "; ".join(finding.sentence for finding in findings)
    return Probe(ok, f"{api.label}: {detail}" if ok else detail, tuple(findings))


async def _version(api: Api, spec: Version) -> Finding:
    request = api.make(spec)
    try:
        try:
            # Most partners show their version to everybody, and so a wrong address does not look like a wrong password.
            response = await api.http.send_unauthenticated(request)
        except AuthError:
            response = await api.http.send(request)
    except AuthError as error:
        return Finding("auth", False, str(error))
    except (StatusError, SchemaDrift) as error:
        # Many servers show their pages, and not 404, wherever there is nothing else.
        lost = isinstance(error, SchemaDrift) or error.status == 404
        hint = "; is base_url right?" if lost else ""
        return Finding("version", False, f"{error}; this is not {api.rest.title}, or not at this address{hint}")
    except RemoteError as error:
        return Finding("version", False, str(error))
    found = _version_in(spec, response)
    if found is None:
        return Finding("version", False, f"{api.label}: responds, but not as {api.rest.title} does")
    if not _numbers(spec.at_least) <= _numbers(found) < _numbers(spec.below):
        wanted = f"versions from {spec.at_least} up to, but without, {spec.below} are supported"
        sentence = f"{api.label}: is version {found}; {wanted}; {spec.otherwise}".rstrip("; ")
        return Finding("version", False, sentence)
    return Finding("version", True, f"{api.rest.title}, version {found}")


def _version_in(spec: Version, response: Response) -> str | None:
    found = value_at(response.body, spec.selector)
    return found if isinstance(found, str) and re.match(r"\d{1,6}(\.\d{1,6})*", found) else None


def _numbers(version: str) -> tuple[int, ...]:
    leading = re.match(r"\d{1,6}(\.\d{1,6})*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


async def _access(api: Api, external_id: str | None) -> list[Finding]:
    try:
        await api.http.sign_in()
    except RemoteError as error:
        return [Finding("auth", False, str(error))]
    requests = _access_requests(api, external_id)
    for number, (access, values) in enumerate(requests, start=1):
        try:
            response = await api.http.send(api.make(access, **values, page_size=1))
            api.check(response)
            if isinstance(access, Access) and access.data_selector is not None:
                api.items(response, access.data_selector)
        except StatusError as error:
            if error.status in ABSENT_STATUSES and number < len(requests):
                continue
            return _refused(api, error, external_id, is_alone=len(requests) == 1)
        except AuthError as error:
            return [Finding("auth", False, str(error))]
        except RemoteError as error:
            return [Finding("answer", False, str(error))]
        offers = access.offers if isinstance(access, Access) else None
        return [Finding("auth", True, _accepted(api)), Finding("rights", True, offers or "runs may be read")]
    raise AssertionError("there is always a request")


def _access_requests(api: Api, external_id: str | None) -> list[tuple[RequestTemplate, Mapping[str, Any]]]:
    stream = api.rest.streams[0]
    if not api.rest.check.access:
        return [(stream, api.account_values)]
    requests: list[tuple[RequestTemplate, Mapping[str, Any]]] = [(a, api.account_values) for a in api.rest.check.access]
    if external_id is not None and api.rest.scope.filter_by == "id":
        requests.append((stream, {"id": external_id}))
    return requests


def _refused(api: Api, error: StatusError, external_id: str | None, *, is_alone: bool) -> list[Finding]:
    topic = "rights" if error.status == 403 else "answer"
    sentence = str(error)
    if not is_alone and error.status in ABSENT_STATUSES:
        tried = "none of the expected paths" if external_id is None else f"no runs of pipeline {external_id!r} either"
        sentence = f"{api.label}: responds, but has {tried}; is the path of base_url right?"
    return [Finding("auth", True, "the credentials are accepted"), Finding(topic, False, sentence)]


def _accepted(api: Api) -> str:
    return "the credentials are accepted" if api.http.auth.sends_credentials else "no credentials are required"
