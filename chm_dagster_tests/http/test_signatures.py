"""Sign-ins that are code: the servers here check what arrives, with the public key or with the secret."""

import asyncio
import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from chm_dagster.errors import AuthError, ConfigError, RemoteError
from chm_dagster.http.auth import Auth, LoginSession, Token
from chm_dagster.http.client import HttpClient, HttpPolicy, Response
from chm_dagster.http.client import Request as HttpRequest
from chm_dagster.http.signatures import AwsSignature, JwtSigner, library
from chm_dagster.partners.credentials import Authenticator, GithubApp, GoogleAccount
from chm_dagster_tests.http.fault_server import FaultServer, Reply, Request, in_turn, json_reply, status_reply
from chm_dagster_tests.http.setup import Slept
from chm_dagster_tests.http.sigv4 import is_signed, signature_of

SECRET = "sentinel-secret"
GOOD = json_reply({"runs": []})


def keys(number: int = 0) -> tuple[str, str]:
    """A private key and its public key, in PEM form. Another `number`, another pair."""
    return _pair(number)


@cache
def _pair(number: int) -> tuple[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


def claims_of(assertion: str, audience: str | None = None) -> dict[str, Any]:
    """The claims, if they are signed with our key and valid now. Raises otherwise."""
    found: dict[str, Any] = jwt.decode(
        assertion, keys()[1], algorithms=["RS256"], audience=audience, options={"require": ["exp", "iat", "iss"]}
    )
    return found


def asked(
    answer: Callable[[Request], Reply], make: Callable[[str], Auth], *asks: HttpRequest
) -> tuple[list[Response | RemoteError], list[Request]]:
    """The results of these requests, and what the server received. `make` gets the server's address."""

    async def scene() -> tuple[list[Response | RemoteError], list[Request]]:
        outcomes: list[Response | RemoteError] = []
        async with FaultServer(answer) as server:
            auth = make(server.base_url)
            async with HttpClient("connection acme", server.base_url, auth=auth, sleep=Slept()) as http:
                for ask in asks:
                    try:
                        outcomes.append(await http.send(ask))
                    except RemoteError as error:
                        outcomes.append(error)
            return outcomes, server.requests

    return asyncio.run(scene())


# AWS


def aws(secret: str = SECRET, session_token: str | None = None) -> Callable[[str], Auth]:
    return lambda _: AwsSignature(
        "connection acme",
        service="states",
        region="eu-west-1",
        access_key_id="AKIDEXAMPLE",
        secret_access_key=secret,
        session_token=session_token,
        hint="check ACME_SECRET",
    )


def guard(request: Request) -> Reply:
    good = is_signed(
        request.method,
        request.target,
        request.headers,
        request.body,
        key_id="AKIDEXAMPLE",
        secret=SECRET,
        service="states",
    )
    return GOOD if good else status_reply(403)


def test_the_checking_server_agrees_with_the_vector_that_aws_published() -> None:
    """`get-vanilla` of the Signature Version 4 test suite."""
    found = signature_of(
        "GET",
        "/",
        {"host": "example.amazonaws.com", "x-amz-date": "20150830T123600Z"},
        b"",
        secret="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        scope="20150830/us-east-1/service/aws4_request",
        signed="host;x-amz-date",
    )
    assert found == "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"


@pytest.mark.parametrize(
    "ask",
    [
        HttpRequest(),
        HttpRequest(["restapi", "My Environment"], (("b", "2"), ("a", "1 +/:*~,é"), ("a", ""))),
        HttpRequest(["a:b", "c/d", "e%2F"], method="POST", body={"stateMachineArn": "arn:aws:states"}),
        HttpRequest(
            method="POST",
            body={"x": "é"},
            headers={"X-Amz-Target": "AWSStepFunctions.ListExecutions", "Content-Type": "application/x-amz-json-1.0"},
        ),
    ],
    ids=["nothing", "parameters", "a path", "headers"],
)
def test_a_signature_is_what_the_server_computes(ask: HttpRequest) -> None:
    outcomes, requests = asked(guard, aws(), ask)
    assert isinstance(outcomes[0], Response), outcomes
    signed = requests[0].headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert ("x-amz-target" in signed) == ("X-Amz-Target" in ask.headers)


def test_another_secret_is_refused_and_never_shown(all_logs: pytest.LogCaptureFixture) -> None:
    outcomes, requests = asked(guard, aws("sentinel-other"), HttpRequest(["a"]))
    assert isinstance(outcomes[0], AuthError)
    assert "check ACME_SECRET, and the clock of this machine" in str(outcomes[0])
    assert len(requests) == 1
    shown = [str(outcomes[0]), repr(outcomes[0].__context__), *all_logs.messages, repr(aws()(""))]
    assert not [text for text in shown if "sentinel" in text]


def test_temporary_credentials_send_their_token_and_sign_it() -> None:
    outcomes, requests = asked(guard, aws(session_token="session-1"), HttpRequest(["a"]))
    assert isinstance(outcomes[0], Response)
    assert requests[0].headers["x-amz-security-token"] == "session-1"
    assert "x-amz-security-token" in requests[0].headers["authorization"]


def test_each_attempt_is_signed_anew() -> None:
    """A signature is valid for minutes only, and Retry-After may be longer."""
    calls: list[Request] = []

    class Counted(AwsSignature):
        async def authenticate(self, send: Any, request: Any) -> Any:
            calls.append(request)
            return await super().authenticate(send, request)

    def make(_: str) -> Auth:
        return Counted("c", service="states", region="eu-west-1", access_key_id="AKIDEXAMPLE", secret_access_key=SECRET)

    replies = [status_reply(503), status_reply(503)]
    outcomes, requests = asked(lambda r: replies.pop() if replies else guard(r), make, HttpRequest(["a"]))
    assert isinstance(outcomes[0], Response)
    assert len(calls) == len(requests) == 3


# Tokens for signed assertions


def authenticator(**secrets: str) -> Authenticator:
    return Authenticator("connection acme", secrets, "check ACME_KEY", {}, HttpPolicy())


class Google:
    """Google's token endpoint, and an API that takes its tokens. `seconds` is how long one is valid."""

    def __init__(self, seconds: float = 3600) -> None:
        self.seconds = seconds
        self.given = 0
        self.audience = ""

    def __call__(self, request: Request) -> Reply:
        if request.path == "/base/token":
            form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
            assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
            assert jwt.get_unverified_header(form["assertion"])["kid"] == "key-1"
            claims = claims_of(form["assertion"], self.audience)
            assert claims["iss"] == "chm@acme.example"
            assert claims["scope"] == "https://www.googleapis.com/auth/cloud-platform"
            assert claims["exp"] - time.time() <= 3600
            self.given += 1
            return json_reply({"access_token": f"token-{self.given}", "expires_in": self.seconds})
        good = request.headers.get("authorization") == f"Bearer token-{self.given}"
        return GOOD if good else status_reply(401)

    def auth(self, base_url: str) -> Auth:
        self.audience = f"{base_url}/token"
        account = {
            "type": "service_account",
            "client_email": "chm@acme.example",
            "private_key": keys()[0],
            "private_key_id": "key-1",
            "token_uri": self.audience,
        }
        return authenticator(service_account=json.dumps(account)).auth(GoogleAccount(kind="google"))


def paths(requests: list[Request]) -> list[str]:
    return [request.path.removeprefix("/base/") for request in requests]


def test_a_service_account_gets_a_token_for_its_signed_assertion_and_keeps_it() -> None:
    google = Google()
    outcomes, requests = asked(google, google.auth, HttpRequest(["a"]), HttpRequest(["b"]))
    assert all(isinstance(outcome, Response) for outcome in outcomes), outcomes
    assert paths(requests) == ["token", "a", "b"]


def test_a_refused_token_is_replaced_once() -> None:
    google = Google()

    def answer(request: Request) -> Reply:
        if paths([request]) == ["b"] and google.given == 1:
            return status_reply(401)
        return google(request)

    outcomes, requests = asked(answer, google.auth, HttpRequest(["a"]), HttpRequest(["b"]))
    assert all(isinstance(outcome, Response) for outcome in outcomes), outcomes
    assert paths(requests) == ["token", "a", "b", "token", "b"]


class Ticks:
    """A clock of seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "later", "logins"),
    [(3600.0, 3500.0, 1), (3600.0, 3541.0, 2), (None, 1e6, 1), (60.0, 29.0, 1), (60.0, 31.0, 2)],
)
def test_a_token_is_replaced_shortly_before_it_expires(seconds: float | None, later: float, logins: int) -> None:
    ticks, given = Ticks(), []

    async def log_in(send: Any) -> Token:
        given.append(ticks.now)
        return Token(f"token-{len(given)}", seconds)

    session = LoginSession("connection acme", log_in, clock=ticks)

    def answer(request: Request) -> Reply:
        ticks.now = 1000.0 + later
        return GOOD if request.headers["authorization"] == f"Bearer token-{len(given)}" else status_reply(401)

    outcomes, requests = asked(answer, lambda _: session, HttpRequest(["a"]), HttpRequest(["b"]))
    assert all(isinstance(outcome, Response) for outcome in outcomes), outcomes
    assert (len(given), len(requests)) == (logins, 2)


class Github:
    """GitHub's tokens for installations of an app, and an API that takes them."""

    def __init__(self, expires_at: str = "2099-01-01T00:00:00Z") -> None:
        self.expires_at = expires_at
        self.given = 0

    def __call__(self, request: Request) -> Reply:
        if request.path == "/base/app/installations/77/access_tokens":
            assert request.method == "POST"
            claims = claims_of(request.headers["authorization"].removeprefix("Bearer "))
            assert claims["iss"] == "12345"
            # GitHub refuses more than ten minutes, and assertions from the future.
            assert claims["iat"] <= time.time() - 30
            assert claims["exp"] <= time.time() + 600
            self.given += 1
            return json_reply({"token": f"ghs_{self.given}", "expires_at": self.expires_at}, 201)
        good = request.headers.get("authorization") == f"Bearer ghs_{self.given}"
        return GOOD if good else status_reply(401)


def app(private_key: str) -> Callable[[str], Auth]:
    secrets = {"app_id": "12345", "installation_id": "77", "private_key": private_key}
    return lambda _: authenticator(**secrets).auth(GithubApp(kind="github_app"))


@pytest.mark.parametrize("written", ["with line breaks", "in one line"])
def test_a_github_app_gets_a_token_for_its_installation(written: str) -> None:
    key = keys()[0] if written == "with line breaks" else keys()[0].replace("\n", "\\n")
    outcomes, requests = asked(Github(), app(key), HttpRequest(["repos"]), HttpRequest(["repos"]))
    assert all(isinstance(outcome, Response) for outcome in outcomes), outcomes
    assert paths(requests) == ["app/installations/77/access_tokens", "repos", "repos"]


@pytest.mark.parametrize("expires_at", ["2001-01-01T00:00:00Z", "soon", "2001-01-01T00:00:00"])
def test_an_end_that_makes_no_sense_is_left_to_the_server(expires_at: str) -> None:
    outcomes, requests = asked(Github(expires_at), app(keys()[0]), HttpRequest(["a"]), HttpRequest(["b"]))
    assert all(isinstance(outcome, Response) for outcome in outcomes), outcomes
    assert len(requests) == 3


def test_a_refused_assertion_names_what_to_check(all_logs: pytest.LogCaptureFixture) -> None:
    outcomes, _ = asked(in_turn(status_reply(404)), app(keys()[0]), HttpRequest(["a"]))
    assert isinstance(outcomes[0], AuthError)
    assert "login failed; check ACME_KEY" in str(outcomes[0])
    body = keys()[0].splitlines()[1]
    assert not [text for text in [str(outcomes[0]), *all_logs.messages] if body in text]


@pytest.mark.parametrize("key", ["sentinel", "-----BEGIN PRIVATE KEY-----\nsentinel\n-----END PRIVATE KEY-----", ""])
def test_an_unusable_key_is_reported_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JwtSigner("connection acme", key, extra="google", hint="check ACME_KEY")
    assert str(caught.value) == (
        "connection acme: the private key is not an unencrypted RSA key in PEM form; check ACME_KEY"
    )
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "text", ["sentinel", "[]", '{"client_email": "sentinel"}', '{"private_key": 7}', "/a/key.json"]
)
def test_a_service_account_that_is_no_key_file_is_reported_without_showing_it(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        authenticator(service_account=text).auth(GoogleAccount(kind="google"))
    assert "the service account is not the content of a JSON key file" in str(caught.value)
    assert str(caught.value).endswith("; check ACME_KEY")
    assert "sentinel" not in f"{caught.value!r} {caught.value.__context__!r}"


def test_a_missing_library_says_how_to_install_it() -> None:
    with pytest.raises(ConfigError) as caught:
        library("connection acme", "chm_no_such_library.auth", "aws")
    assert str(caught.value) == (
        "connection acme: this sign-in needs the package chm_no_such_library, which is not installed; "
        "pip install 'chm-dagster[aws]'"
    )
