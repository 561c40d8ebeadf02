"""Pipelines that a partner has and the inventory lacks, as inventory YAML that can be applied."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from chm_dagster.domain.pipelines import Environment, Pipeline, PipelineType, Platform
from chm_dagster.errors import ConfigError
from chm_dagster.ingestion import inventory_apply, inventory_file
from chm_dagster.ingestion.inventory_apply import as_inventory, lacking
from chm_dagster.partners.port import Partner, SourcePipeline
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.warehouse import Warehouse


def partner(name: str = "acme-airflow", platform: Platform | None = Platform.AIRFLOW) -> Partner:
    unused: Any = None
    return Partner(name, unused, unused, platform)


def source(external_id: str, name: str | None = None) -> SourcePipeline:
    return SourcePipeline(external_id, name or external_id, PipelineType.TRANSFORM)


def pipeline(external_id: str | None, connection: str | None = None, platform: Platform = Platform.AIRFLOW) -> Pipeline:
    now = datetime.now(UTC)
    return Pipeline(
        id=uuid4(),
        client_id=uuid4(),
        client_slug="acme",
        client_name="Acme",
        slug="x",
        name="x",
        platform=platform,
        connection=connection,
        external_id=external_id,
        pipeline_type=PipelineType.INGESTION,
        environment=Environment.PROD,
        description=None,
        is_active=False,
        schedule_cron=None,
        schedule_timezone=None,
        grace_minutes=None,
        max_runtime_minutes=None,
        synced_through=None,
        created_at=now,
        updated_at=now,
    )


def ids(found: list[SourcePipeline]) -> list[str]:
    return [one.external_id for one in found]


def test_pipelines_already_in_the_inventory_are_left_out() -> None:
    here, other = partner(), partner("other")
    partners = {"acme-airflow": here, "other": other}
    found = [source("a"), source("b"), source("c"), source("d")]
    known = [
        pipeline("a", "acme-airflow"),
        pipeline("b", "other"),
        pipeline(None, "acme-airflow"),
        pipeline("c", "gone"),
    ]
    assert ids(lacking(found, known, here, partners)) == ["b", "c", "d"]


def test_a_pipeline_that_names_no_connection_counts_for_its_platforms_default() -> None:
    here = partner()
    known = [pipeline("a"), pipeline("b", platform=Platform.DBT)]
    assert ids(lacking([source("a"), source("b")], known, here, {"acme-airflow": here})) == ["b"]


def test_duplicate_names_are_distinguished_by_their_ids() -> None:
    found = [
        source("1", "prod"),
        source("2", "prod"),
        source("3", "Täglich: Umsatz"),
        source("4", "!!!"),
        source("5", "täglich umsatz"),
    ]
    content = as_inventory(found, partner(), ("acme", "Acme"), taken=["prod-1"])
    made = content["clients"]["acme"]["pipelines"]
    assert {slug: (p["name"], p["external_id"]) for slug, p in made.items()} == {
        "prod-1-2": ("prod (1)", "1"),
        "prod-2": ("prod (2)", "2"),
        "taglich-umsatz": ("Täglich: Umsatz", "3"),
        "4": ("!!!", "4"),
        "taglich-umsatz-2": ("täglich umsatz", "5"),
    }


def test_long_names_fit_the_inventory() -> None:
    content = as_inventory([source("x", "n" * 900), source("y", "n" * 900)], partner(), ("acme", "Acme"))
    made = content["clients"]["acme"]["pipelines"]
    assert len({p["name"] for p in made.values()}) == len(made) == 2
    assert all(len(slug) <= 100 and len(p["name"]) <= 200 for slug, p in made.items())


def test_the_platform_of_a_generic_partners_pipelines_is_unknown() -> None:
    with pytest.raises(ConfigError, match="does not say where its pipelines run"):
        as_inventory([source("a")], partner(platform=None), ("acme", "Acme"))


def test_discovered_pipelines_can_be_applied_and_are_then_complete(engine: Engine) -> None:
    here = partner()
    found = [source("a", "Orders"), source("b", "Orders"), source("c:d/e", "no")]
    text = inventory_file.dump(as_inventory(found, here, ("acme", "Acme GmbH")))
    warehouse = Warehouse(engine)
    inventory_apply.apply(warehouse, inventory_file.parse(text))
    kept = warehouse.pipelines.list(active=None).items
    assert {(p.external_id, p.platform, p.connection, p.pipeline_type) for p in kept} == {
        (external_id, Platform.AIRFLOW, "acme-airflow", PipelineType.TRANSFORM) for external_id in ("a", "b", "c:d/e")
    }
    assert lacking(found, kept, here, {"acme-airflow": here}) == []
