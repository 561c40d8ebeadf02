"""Puts the collection of `metabase.py` into a running Metabase, over its HTTP API. What is there already is kept.

Nothing is deleted but what somebody added to CHM's own dashboards. Every object that was written is compared with what
Metabase answers, so a Metabase that understands something else by a field is noticed.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from chm_dagster.errors import AuthError, ConfigError, Permanent, SchemaDrift
from chm_dagster.http.auth import Auth, StaticAuth, header
from chm_dagster.http.client import HttpClient, HttpPolicy, Request
from chm_dagster.http.failures import StatusError
from chm_dagster.presentation import metabase
from chm_dagster.presentation.metabase import DATABASE, Entity

LABEL = "Metabase"
# A POST creates something, so it is not repeated.
_POLICY = HttpPolicy(attempts=1, concurrency=1, deadline=60.0)
_HINT = "set CHM_METABASE_API_KEY, or CHM_METABASE_USER and CHM_METABASE_PASSWORD, of an administrator"
_LOOKS = {"description", "width", "visualization_settings", "sectionId", "isMultiSelect", "values_query_type",
          "values_source_type", "values_source_config"}  # fmt: skip
"""Fields without which everything still shows the right numbers."""


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """How to sign in to Metabase: an API key, or an administrator's email address and password."""

    api_key: str | None = dataclasses.field(default=None, repr=False)
    user: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Connection:
    """How Metabase reaches CHM's database, as `user`."""

    host: str
    port: int
    name: str
    user: str
    password: str = dataclasses.field(repr=False)
    ssl: bool = True

    @property
    def details(self) -> dict[str, Any]:
        """As Metabase stores them, without the password."""
        own = {"host": self.host, "port": self.port, "dbname": self.name, "user": self.user, "ssl": self.ssl}
        return own | ({"ssl-mode": "require"} if self.ssl else {})


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One object that was created or updated. `lost` are fields that Metabase did not keep."""

    kind: str
    name: str
    change: str
    lost: tuple[str, ...] = ()


async def apply(url: str, credentials: Credentials, connection: Connection, *, renew_password: bool) -> list[Change]:
    """Make Metabase show what this release of CHM shows; set a fresh Metabase up first. Returns what was changed.

    `renew_password` sends the password of the database even if nothing else changed: Metabase never tells the one that
    it has. Raises ConfigError, and RemoteError with the version of Metabase where its API is another one.
    """
    async with HttpClient(LABEL, url, policy=_POLICY) as anonymous:
        properties = (await anonymous.send(_get("session", "properties"))).body
        version = _version(properties)
        try:
            fresh = properties.get("has-user-setup") is False
            auth = await _signed_in(anonymous, credentials, properties.get("setup-token") if fresh else None)
            async with HttpClient(LABEL, url, policy=_POLICY, auth=auth) as client:
                server = _Server(client, [Change("Metabase", url, "set up")] if fresh else [])
                await _apply(server, connection, renew_password=renew_password)
                return server.changes
        except SchemaDrift as error:
            raise SchemaDrift(_other_api(str(error), version)) from None
        except StatusError as error:
            raise Permanent(_other_api(str(error), version)) from None


def _other_api(message: str, version: str) -> str:
    return f"{message}; it is Metabase {version}, whose API may differ from the one that this release of CHM knows"


def _version(properties: Mapping[str, Any]) -> str:
    version = properties.get("version")
    tag = version.get("tag") if isinstance(version, Mapping) else None
    if not isinstance(tag, str) or len(tag) > 40 or not tag.isprintable():
        raise SchemaDrift(f"{LABEL}: the server does not say which version of Metabase it is; check --url")
    return tag


async def _signed_in(anonymous: HttpClient, credentials: Credentials, setup_token: str | None) -> Auth:
    """Sign in, by key or by session; with a `setup_token`, create the administrator."""
    if setup_token is None and credentials.api_key is not None:
        return header(LABEL, "X-API-Key", credentials.api_key, hint=_HINT)
    if credentials.user is None or credentials.password is None:
        fresh = "it is not set up yet, which takes CHM_METABASE_USER and CHM_METABASE_PASSWORD"
        raise ConfigError(f"{LABEL}: {fresh if setup_token else _HINT}")
    if setup_token is None:
        body: Entity = {"username": credentials.user, "password": credentials.password}
        request = _write("POST", body, "session")
    else:
        user = {"email": credentials.user, "password": credentials.password, "first_name": "CHM", "last_name": None}
        prefs = {"site_name": metabase.COLLECTION, "site_locale": "en"}
        request = _write("POST", {"token": setup_token, "user": user, "prefs": prefs}, "setup")
    try:
        session = (await anonymous.send(request)).body.get("id")
    except (StatusError, AuthError) as error:
        what = "refused to create the administrator" if setup_token else "refused the sign-in"
        hint = "the password may be too weak" if setup_token else _HINT
        raise AuthError(f"{LABEL}: {what} ({getattr(error, 'status', 'credentials')}); {hint}") from None
    if not isinstance(session, str):
        raise SchemaDrift(f"{LABEL}: the sign-in returned no session")
    return StaticAuth({"X-Metabase-Session": session}, hint=_HINT)


def _get(*path: str, params: Sequence[tuple[str, str]] = (), shape: Literal["object", "any"] = "object") -> Request:
    return Request(("api", *path), params, shape=shape)


def _write(method: Literal["POST", "PUT"], body: Entity, *path: str) -> Request:
    return Request(("api", *path), method=method, body=body)


class _Server:
    """Requests to Metabase, and what they changed."""

    def __init__(self, client: HttpClient, changes: list[Change]) -> None:
        self._client = client
        self.changes = changes

    async def one(self, *path: str) -> Entity:
        """An object."""
        found: Entity = (await self._client.send(_get(*path))).body
        return found

    async def listed(self, *path: str, params: Sequence[tuple[str, str]] = ()) -> list[Entity]:
        """A list, whether bare or under `data`. Raises SchemaDrift if it is neither, or not all of it."""
        body = (await self._client.send(_get(*path, params=params, shape="any"))).body
        rows = body.get("data") if isinstance(body, dict) else body
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "id" in row for row in rows):
            raise SchemaDrift(f"{LABEL}: the list at /api/{'/'.join(path)} has another form")
        if isinstance(body, dict) and isinstance(body.get("total"), int) and body["total"] > len(rows):
            raise SchemaDrift(f"{LABEL}: the list at /api/{'/'.join(path)} is not complete")
        return rows

    async def create(self, kind: str, body: Entity, wanted: Entity) -> Entity:
        """Create an object, and check that it is the `wanted` one."""
        made: Entity = (await self._client.send(_write("POST", body, kind))).body
        self._note(kind, body["name"], "created", made, wanted)
        return made

    async def update(self, kind: str, own: int, body: Entity, wanted: Entity) -> None:
        """Change an object, and check that it is the `wanted` one afterwards."""
        made: Entity = (await self._client.send(_write("PUT", body, kind, str(own)))).body
        self._note(kind, body["name"], "updated", made, wanted)

    def _note(self, kind: str, name: str, change: str, made: Entity, wanted: Entity) -> None:
        if not isinstance(made.get("id"), int):
            raise SchemaDrift(f"{LABEL}: the {kind} {name!r} was {change} without an id")
        lost = tuple(dict.fromkeys(differences(readable(made), wanted)))
        for path in lost:
            if not _LOOKS & set(path.split(".")):
                raise SchemaDrift(f"{LABEL}: the {kind} {name!r} was {change}, and its {path} is not what was sent")
        self.changes.append(Change(kind, name, change, lost))


def differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Where `found` does not hold what is `wanted`, as paths. Fields that nobody asked for do not count."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for name, value in wanted.items():
            yield from differences(found.get(name), value, f"{path}.{name}".removeprefix("."))
    elif isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        for one, other in zip(found, wanted, strict=True):
            yield from differences(one, other, path)
    elif found != wanted:
        yield path


def readable(found: Entity) -> Entity:
    """An object of Metabase in the form that is compared: statements in one form, dashboards in the order of places."""
    if isinstance(query := found.get("dataset_query"), dict):
        stage = (query.get("stages") or [query.get("native") or {}])[0]
        tags = stage.get("template-tags") or {}
        found = found | {"dataset_query": {
            "database": query.get("database"),
            "sql": stage.get("query", stage.get("native")),
            "tags": {tag.get("name"): tag.get("type") for tag in (tags.values() if isinstance(tags, dict) else tags)},
        }}  # fmt: skip
    if isinstance(cards := found.get("dashcards"), list):
        cards = [
            c | {"parameter_mappings": sorted(c.get("parameter_mappings") or (), key=lambda m: str(m["parameter_id"]))}
            for c in cards
        ]
        found = found | {"dashcards": sorted(cards, key=lambda card: (card.get("row"), card.get("col")))}
    return found


# --- the objects, in the order in which they need each other


async def _apply(server: _Server, connection: Connection, *, renew_password: bool) -> None:
    database = await _database(server, connection, renew_password=renew_password)
    collection = await _collection(server)
    models = [("models", "card"), ("models", "dashboard")]
    items = await server.listed("collection", str(collection), "items", params=models)
    cards = {card["entity_id"]: await _card(server, card, items, database, collection) for card in metabase.cards()}
    wanted = metabase.dashboards()
    ids = {entity["entity_id"]: await _empty_dashboard(server, entity, items, collection) for entity in wanted}
    for entity in wanted:
        await _dashboard(server, entity, ids, cards)


async def _database(server: _Server, connection: Connection, *, renew_password: bool) -> int:
    wanted = {"name": DATABASE, "engine": "postgres", "details": connection.details}
    body = wanted | {"details": connection.details | {"password": connection.password}}
    found = [d for d in await server.listed("database") if d.get("name") == DATABASE]
    if not found:
        return int((await server.create("database", body, wanted))["id"])
    own = int(found[0]["id"])
    if renew_password or any(differences(await server.one("database", str(own)), wanted)):
        await server.update("database", own, body, wanted)
    return own


async def _collection(server: _Server) -> int:
    entity = metabase.collection()
    wanted = {"name": entity["name"], "description": entity["description"]}
    top = [c for c in await server.listed("collection") if c.get("location") in (None, "/") and not c.get("archived")]
    found = [c for c in top if c.get("name") == entity["name"]]
    if not found:
        return int((await server.create("collection", wanted, wanted))["id"])
    own = int(found[0]["id"])
    if any(differences(found[0], wanted)):
        await server.update("collection", own, wanted, wanted)
    return own


def _item(items: list[Entity], model: str, entity: Entity) -> int | None:
    """The id of an entity in Metabase: it is known by its entity id, or else by its name."""
    for key in ("entity_id", "name"):
        for item in items:
            if item.get("model") == model and item.get(key) == entity[key]:
                return int(item["id"])
    return None


async def _card(server: _Server, entity: Entity, items: list[Entity], database: int, collection: int) -> int:
    (stage,) = entity["dataset_query"]["stages"]
    tags = stage["template-tags"]
    native = {"query": stage["native"], "template-tags": {tag["name"]: tag for tag in tags}}
    kept = ("name", "description", "display", "type", "parameters", "visualization_settings")
    own = {name: entity[name] for name in kept}
    body = own | {"collection_id": collection,
                  "dataset_query": {"type": "native", "database": database, "native": native}}  # fmt: skip
    wanted = readable(body)
    found = _item(items, "card", entity)
    if found is None:
        return int((await server.create("card", body | {"entity_id": entity["entity_id"]}, wanted))["id"])
    if any(differences(readable(await server.one("card", str(found))), wanted)):
        await server.update("card", found, body, wanted)
    return found


async def _empty_dashboard(server: _Server, entity: Entity, items: list[Entity], collection: int) -> int:
    found = _item(items, "dashboard", entity)
    if found is not None:
        return found
    body = {"name": entity["name"], "description": entity["description"], "collection_id": collection,
            "parameters": entity["parameters"]}  # fmt: skip
    return int((await server.create("dashboard", body, {"name": entity["name"], "collection_id": collection}))["id"])


async def _dashboard(server: _Server, entity: Entity, ids: Mapping[str, int], cards: Mapping[str, int]) -> None:
    """Fill a dashboard, or put it right."""
    own = ids[entity["entity_id"]]
    wanted = readable({
        "name": entity["name"],
        "description": entity["description"],
        "width": entity["width"],
        "parameters": entity["parameters"],
        "dashcards": [_dashcard(placed, ids, cards) for placed in entity["dashcards"]],
    })  # fmt: skip
    found = readable(await server.one("dashboard", str(own)))
    if not any(differences(found, wanted)):
        return
    there = {card.get("card_id"): card["id"] for card in found.get("dashcards") or ()}
    numbered = [
        card | {"id": there.get(card["card_id"], -number)} for number, card in enumerate(wanted["dashcards"], 1)
    ]
    await server.update("dashboard", own, wanted | {"dashcards": numbered}, wanted)


def _dashcard(placed: Entity, ids: Mapping[str, int], cards: Mapping[str, int]) -> Entity:
    """A question on a dashboard, with Metabase's numbers in place of entity ids."""
    card = cards[placed["card_id"]]
    columns = {
        column: {"click_behavior": link["click_behavior"] | {"targetId": ids[link["click_behavior"]["targetId"]]}}
        for column, link in placed["visualization_settings"].get("column_settings", {}).items()
    }
    return {
        **{name: placed[name] for name in ("row", "col", "size_x", "size_y")},
        "card_id": card,
        "parameter_mappings": [mapping | {"card_id": card} for mapping in placed["parameter_mappings"]],
        "visualization_settings": {"column_settings": columns} if columns else {},
    }
