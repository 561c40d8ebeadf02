"""Which of a partner's pipelines the inventory lacks, and how they would stand in it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chm_dagster.domain.inventory import Pipeline, slugify
from chm_dagster.errors import ConfigError
from chm_dagster.partners.connections import partner_of
from chm_dagster.partners.port import Partner, SourcePipeline

_MAX_NAME, _MAX_SLUG, _MAX_SUFFIX = 200, 100, 60


def lacking(
    found: Iterable[SourcePipeline], inventory: Iterable[Pipeline], partner: Partner, partners: Mapping[str, Partner]
) -> list[SourcePipeline]:
    """What was found and is not in the inventory, under whichever client; a disabled pipeline is in it on purpose."""
    known = {p.external_id for p in inventory if p.external_id is not None and _tells_of(p, partner, partners)}
    return [pipeline for pipeline in found if pipeline.external_id not in known]


def _tells_of(pipeline: Pipeline, partner: Partner, partners: Mapping[str, Partner]) -> bool:
    try:
        return partner_of(pipeline, partners).name == partner.name
    except ConfigError:
        return False


def as_inventory(
    found: Sequence[SourcePipeline], partner: Partner, client: tuple[str, str], taken: Iterable[str] = ()
) -> dict[str, Any]:
    """The pipelines as inventory YAML holds them, under one client (slug, name). `taken` are slugs that are in use.

    Names that more than one pipeline has are told apart by the pipelines' ids. Raises ConfigError for pipelines of
    which nobody says where they run.
    """
    if partner.platform is None and any(pipeline.platform is None for pipeline in found):
        raise ConfigError(f"connection {partner.name} does not say where its pipelines run; give it a platform")
    slug, name = client
    names = [_short(pipeline.name) for pipeline in found]
    pipelines: dict[str, Any] = {}
    used = set(taken)
    for pipeline, short in zip(found, names, strict=True):
        suffix = "" if names.count(short) == 1 else f" ({pipeline.external_id})"[-_MAX_SUFFIX:]
        label = f"{_short(short, _MAX_NAME - len(suffix))}{suffix}"
        key = _free_slug(slugify(label) or slugify(pipeline.external_id) or "pipeline", used)
        used.add(key)
        pipelines[key] = {
            "name": label,
            "platform": str(pipeline.platform or partner.platform),
            "connection": partner.name,
            "external_id": pipeline.external_id,
            "pipeline_type": pipeline.pipeline_type.value,
        }
    return {"clients": {slug: {"name": name, "pipelines": pipelines}}}


def _short(name: str, limit: int = _MAX_NAME) -> str:
    return " ".join(name.split())[:limit].strip()


def _free_slug(wanted: str, used: set[str]) -> str:
    plain = wanted[: _MAX_SLUG - 6].strip("-")
    number = 1
    slug = plain
    while slug in used:
        number += 1
        slug = f"{plain}-{number}"
    return slug
