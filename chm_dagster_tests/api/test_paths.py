"""Clients and pipelines are named by id or slug, and each path has exactly one meaning."""

import httpx

from chm_dagster_tests.api.calls import add_client, add_pipeline, refused

UUID_LIKE = "01890a5d-ac96-774b-bcce-b302099a8057"


def test_pipeline_paths_work_by_id_by_slug_and_with_an_encoded_slash(api: httpx.Client) -> None:
    pipeline = add_pipeline(api, "Acme", "Orders")
    run = api.post("/api/v1/pipelines/acme/orders/runs", json={"status": "success"}).json()
    for ref in (pipeline["id"], pipeline["id"].upper(), "acme/orders", "acme%2Forders", "acme%2forders"):
        assert api.get(f"/api/v1/pipelines/{ref}").json()["id"] == pipeline["id"]
        assert [r["id"] for r in api.get(f"/api/v1/pipelines/{ref}/runs").json()["items"]] == [run["id"]]
        assert api.get(f"/api/v1/pipelines/{ref}/runs/latest").json()["id"] == run["id"]
        ping = api.post(f"/ping/{ref}/success", params={"rid": run["external_run_id"]}).json()
        assert (ping["pipeline_id"], ping["outcome"]) == (pipeline["id"], "unchanged")


def test_a_pipeline_may_be_called_runs_or_latest_or_start(api: httpx.Client) -> None:
    names = ("runs", "latest", "start")
    made = {name: add_pipeline(api, "Runs", name)["id"] for name in names}
    for name in names:
        path = f"/api/v1/pipelines/runs/{name}"
        assert api.get(path).json()["id"] == made[name]
        assert api.get(f"{path}/runs").json() == {"items": [], "next_cursor": None}
        assert "never ran" in api.get(f"{path}/runs/latest").json()["error"]["message"]
        assert api.get(f"/ping/runs/{name}/start").json()["pipeline_id"] == made[name]


def test_a_pipeline_of_a_client_whose_slug_looks_like_an_id_is_reached_by_its_id(api: httpx.Client) -> None:
    """A UUID followed by `runs` means the runs of a pipeline, whatever slugs exist."""
    api.post("/api/v1/clients", json={"name": "Odd", "slug": UUID_LIKE})
    pipeline = api.post(
        f"/api/v1/clients/{UUID_LIKE}/pipelines", json={"name": "runs", "platform": "cron", "pipeline_type": "export"}
    ).json()
    assert "no pipeline" in api.get(f"/api/v1/pipelines/{UUID_LIKE}/runs").json()["error"]["message"]
    assert api.get(f"/api/v1/pipelines/{pipeline['id']}").json()["key"] == f"{UUID_LIKE}/runs"


def test_an_unknown_pipeline_is_not_found(api: httpx.Client) -> None:
    add_pipeline(api, "Acme", "Orders")
    odd = ["Acme/Orders", "acme/or%00ders", "acme/%FF", "ac me/orders", "%2F%2F%2F"]
    for ref in ["acme/nope", "nope/orders", UUID_LIKE, *odd]:
        for rest in ("", "/runs", "/runs/latest"):
            refused(api.get(f"/api/v1/pipelines/{ref}{rest}"), 404)


def test_an_unknown_client_is_not_found(api: httpx.Client) -> None:
    add_client(api, "Acme")
    for ref in ["nope", UUID_LIKE, "Acme", "a%00b", "%FF", "-"]:
        for rest in ("", "/pipelines", "/runs/summary"):
            refused(api.get(f"/api/v1/clients/{ref}{rest}"), 404)


def test_an_error_names_what_was_not_found(api: httpx.Client) -> None:
    assert "'nope'" in api.get("/api/v1/clients/nope").json()["error"]["message"]
    assert "'acme/nope'" in api.get("/api/v1/pipelines/acme/nope").json()["error"]["message"]


def test_an_unknown_path_is_not_found_and_not_redirected(api: httpx.Client) -> None:
    for path in ["/api/v1/clients/", "/nowhere", "/api/v1", "/api/v1/pipelines/orders", "/api/v1/clients//"]:
        refused(api.get(path), 404)


def test_a_method_that_a_path_does_not_support_gets_the_list_of_those_it_supports(api: httpx.Client) -> None:
    for method, path, allowed in [
        ("PUT", "/api/v1/clients", "GET, HEAD, POST"),
        ("POST", "/api/v1/clients/acme", "DELETE, GET, HEAD, PATCH"),
        ("DELETE", "/api/v1/pipelines/acme/orders/runs", "GET, HEAD, POST"),
        ("PATCH", "/ping/acme/orders/start", "GET, HEAD, POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("TRACE", "/api/v1/alert_rules", "GET, HEAD, POST"),
    ]:
        answer = api.request(method, path)
        refused(answer, 405)
        assert answer.headers["allow"] == allowed, path


def test_head_is_get_without_a_body(api: httpx.Client) -> None:
    add_pipeline(api, "Acme", "Orders")
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/api/v1/clients", "/api/v1/pipelines/acme/orders"):
        head, get = api.head(path), api.get(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == get.headers["content-type"]
    assert api.head("/api/v1/clients/nobody").status_code == 404
    assert api.head("/api/v1/lineage").status_code == 405
