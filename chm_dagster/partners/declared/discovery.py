"""What a configured API says of itself: whether it takes us, and which pipelines it has."""

import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from chm_dagster.errors import AuthError, PartnerError, SchemaDrift
from chm_dagster.partners.declared.asking import Asking
from chm_dagster.partners.declared.model import Discover, Request, Rest, Version
from chm_dagster.partners.declared.pager import Pager
from chm_dagster.partners.declared.paging import Paging
from chm_dagster.partners.declared.places import find, first, identifier
from chm_dagster.partners.http import Answer, PartnerHttp
from chm_dagster.partners.port import Finding, Probe, SourcePipeline
from chm_dagster.partners.retry import Breaker
from chm_dagster.partners.verdicts import Refused


async def discover(rest: Rest, asking: Asking, http: PartnerHttp) -> list[SourcePipeline]:
    """All pipelines of the partner, by external id. Raises PartnerError."""
    spec = rest.discover
    if spec is None:
        return []
    breaker = Breaker(patience=http.policy.max_wait)
    groups = {}
    if spec.group is not None:
        group = spec.group
        async for item in _items(rest, asking, http, breaker, group, group.items, group.paging, group.id):
            groups[identifier(first(item, [group.id]))] = first(item, [group.name])
    found: dict[str, SourcePipeline] = {}
    async for item in _items(rest, asking, http, breaker, spec, spec.items, spec.paging, spec.id):
        for pipeline in _pipelines(spec, item, groups):
            found[pipeline.external_id] = pipeline
    return [found[external_id] for external_id in sorted(found)]


async def _items(
    rest: Rest,
    asking: Asking,
    http: PartnerHttp,
    breaker: Breaker,
    request: Request,
    place: str,
    paging: Paging,
    id_: str,
) -> AsyncGenerator[Any, None]:
    def key(item: Any) -> str | None:
        return identifier(first(item, [id_]))

    may_lack = isinstance(request, Discover) and request.none_without_items
    pager = Pager(http, asking, request, place, paging, page_size=rest.page_size, key=key, may_lack=may_lack)
    async for _, items in pager.pages(breaker):
        for item in items:
            yield item


def _pipelines(spec: Discover, item: Any, groups: Mapping[str | None, Any]) -> Iterator[SourcePipeline]:
    """The pipelines of one item of the list."""
    children = [item] if spec.each is None else [{**item, **child} for child in find(item, f"{spec.each}.*")]
    for child in children:
        external_id = identifier(first(child, [spec.id]))
        if external_id is not None:
            group = groups.get(identifier(first(child, [spec.group.of]))) if spec.group else None
            name = first({**child, "group": group}, spec.name)
            label = name if isinstance(name, str) and name.strip() else external_id
            yield SourcePipeline(external_id, label, spec.pipeline_type, _is_active(spec, child))


def _is_active(spec: Discover, item: Any) -> bool:
    if spec.active and first(item, [spec.active]) is False:
        return False
    return not (spec.paused and first(item, [spec.paused]) is True)


async def probe(rest: Rest, asking: Asking, http: PartnerHttp) -> Probe:
    """Version, credentials and rights, each looked into as far as the one before allows it."""
    findings = []
    if rest.check.version is not None:
        findings.append(await _version(rest, rest.check.version, asking, http))
    if all(finding.ok for finding in findings):
        findings.extend(await _access(rest, asking, http))
    ok = all(finding.ok for finding in findings)
    detail = "; ".join(finding.sentence for finding in findings)
    return Probe(ok, f"connection {http.connection}: {detail}" if ok else detail, tuple(findings))


async def _version(rest: Rest, spec: Version, asking: Asking, http: PartnerHttp) -> Finding:
    ask = asking.ask(spec)
    try:
        try:
            # Most partners tell their version to everybody, and so a wrong address is not taken for a wrong password.
            answer = await http.ask_unproven(ask)
        except AuthError:
            answer = await http.ask(ask)
    except AuthError as error:
        return Finding("auth", False, str(error))
    except (Refused, SchemaDrift) as error:
        # Many servers show their pages, and not 404, wherever there is nothing else.
        lost = isinstance(error, SchemaDrift) or error.status == 404
        hint = "is base_url right?" if lost else ""
        return Finding(
            "version", False, f"{error}; this is not {rest.title}, or not at this address; {hint}".rstrip("; ")
        )
    except PartnerError as error:
        return Finding("version", False, f"no usable answer: {error}")
    found = _version_in(spec, answer)
    if found is None:
        return Finding("version", False, f"connection {http.connection}: answers, but not as {rest.title} does")
    if not _numbers(spec.at_least) <= _numbers(found) < _numbers(spec.below):
        wanted = f"{spec.at_least} up to, but without, {spec.below} is understood"
        sentence = f"connection {http.connection}: is version {found}; {wanted}; {spec.otherwise}".rstrip("; ")
        return Finding("version", False, sentence)
    return Finding("version", True, f"{rest.title}, version {found}")


def _version_in(spec: Version, answer: Answer) -> str | None:
    found = next(iter(find(answer.body, spec.field)), None)
    return found if isinstance(found, str) and re.match(r"\d{1,6}(\.\d{1,6})*", found) else None


def _numbers(version: str) -> tuple[int, ...]:
    leading = re.match(r"\d{1,6}(\.\d{1,6})*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


async def _access(rest: Rest, asking: Asking, http: PartnerHttp) -> list[Finding]:
    try:
        await http.credentials.proof(http.ask_unproven)
    except PartnerError as error:
        return [Finding("auth", False, str(error))]
    request = rest.check.access or rest.passes[0]
    try:
        asking.refused(await http.ask(asking.ask(request, id=rest.scope.everything, page_size=1)))
    except AuthError as error:
        return [Finding("auth", False, str(error))]
    except Refused as error:
        topic = "rights" if error.status == 403 else "answer"
        return [Finding("auth", True, "the credentials are accepted"), Finding(topic, False, str(error))]
    except PartnerError as error:
        return [Finding("answer", False, f"no usable answer: {error}")]
    return [
        Finding("auth", True, _accepted(http)),
        Finding("rights", True, "runs may be read"),
    ]


def _accepted(http: PartnerHttp) -> str:
    return "the credentials are accepted" if http.credentials.is_proof else "no credentials are asked for"
