"""The line of a long error text that says what went wrong is found and kept, whatever wrote the text."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain import error_text
from chm_dagster.domain.error_text import SUMMARY_CHARS, error_excerpt, error_summary, fingerprint
from chm_dagster.domain.limits import MAX_ERROR_BYTES

PYTHON = """\
Traceback (most recent call last):
  File "/opt/airflow/dags/orders.py", line 41, in load
    copy(cursor, rows)
  File "/opt/airflow/dags/orders.py", line 12, in copy
    cursor.execute(statement)
    ~~~~~~~~~~~~~~^^^^^^^^^^^
psycopg.errors.UndefinedTable: relation "raw.orders" does not exist
LINE 1: COPY raw.orders FROM STDIN
             ^
"""
CHAINED = (
    PYTHON
    + """
During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/opt/airflow/dags/orders.py", line 45, in run
    raise LoadError("orders were not loaded") from error
orders.LoadError: orders were not loaded
"""
)
AIRFLOW = """\
[2026-03-01, 08:00:00 UTC] {taskinstance.py:1157} INFO - Starting attempt 1 of 1
[2026-03-01, 08:00:02 UTC] {taskinstance.py:1824} ERROR - Task failed with exception
Traceback (most recent call last):
  File "/opt/airflow/dags/stock.py", line 9, in sync
    response.raise_for_status()
requests.exceptions.HTTPError: 503 Server Error: Service Unavailable for url: https://stock.example/items
[2026-03-01, 08:00:02 UTC] {taskinstance.py:1345} INFO - Marking task as FAILED. dag_id=stock, task_id=sync
[2026-03-01, 08:00:02 UTC] {local_task_job.py:225} INFO - Task exited with return code 1
"""
GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "/app/main.py", line 8, in <module>
  |     asyncio.run(main())
  | ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "/app/main.py", line 3, in fetch
    |     raise TimeoutError("no answer from the warehouse")
    | TimeoutError: no answer from the warehouse
    +------------------------------------
"""
JAVA = """\
Exception in thread "main" org.apache.spark.SparkException: Job aborted due to stage failure
\tat org.apache.spark.scheduler.DAGScheduler.failJob(DAGScheduler.scala:2844)
\tat java.base/java.lang.Thread.run(Thread.java:829)
Caused by: java.lang.RuntimeException: Error while encoding
\tat org.apache.spark.sql.Row.encode(Row.scala:7)
\t... 12 more
Caused by: java.io.IOException: No space left on device
\tat java.base/java.io.FileOutputStream.writeBytes(Native Method)
\t... 31 more
"""
JAVA_ALONE = """\
Mar 01, 2026 8:00:00 AM loader.Main run
java.lang.IllegalStateException: connection pool is exhausted
    at loader.Pool.take(Pool.java:40)
    at loader.Main.main(Main.java:9)
"""
PYSPARK = """\
Traceback (most recent call last):
  File "/jobs/export.py", line 30, in <module>
    frame.write.parquet(target)
py4j.protocol.Py4JJavaError: An error occurred while calling o45.parquet.
: org.apache.spark.SparkException: Job aborted.
\tat org.apache.spark.sql.Writer.write(Writer.scala:231)
Caused by: com.amazonaws.AmazonS3Exception: Access Denied (Status Code: 403)
\tat com.amazonaws.Http.execute(Http.java:1)
"""
NODE = """\
node:internal/process/promises:288
            triggerUncaughtException(err, true /* fromPromise */);
            ^

Error: connect ECONNREFUSED 10.0.0.7:5432
    at TCPConnectWrap.afterConnect [as oncomplete] (node:net:1495:16) {
  errno: -111
}
"""
GO = "panic: runtime error: index out of range [5] with length 3\n\ngoroutine 1 [running]:\nmain.main()\n\t/app/main.go:8 +0x1d\nexit status 2\n"
DBT = """\
08:00:10  Finished running 12 table models in 0 hours 0 minutes and 9.81 seconds (9.81s).
08:00:10
08:00:10  Completed with 1 error and 0 warnings:
08:00:10
08:00:10    Database Error in model orders (models/marts/orders.sql)
  relation "raw.orders" does not exist
  LINE 14: from raw.orders
                ^
  compiled code at target/run/shop/models/marts/orders.sql
08:00:10
08:00:10  Done. PASS=11 WARN=0 ERROR=1 SKIP=0 TOTAL=12
"""
DBT_TEST = """\
08:00:10  Failure in test not_null_orders_id (models/orders.yml)
08:00:10    Got 3 results, configured to fail if != 0
08:00:10  Done. PASS=41 WARN=0 ERROR=1 SKIP=0 TOTAL=42
"""
GITHUB = """\
2026-03-01T08:00:01.1234567Z Run ./export.sh
2026-03-01T08:00:02.1234567Z curl: (28) Connection timed out after 30001 milliseconds
2026-03-01T08:00:02.2234567Z ##[error]Process completed with exit code 28.
"""
POSTGRES = 'ERROR:  column "tax" does not exist\nLINE 1: select tax from orders\n               ^\nHINT:  Perhaps you meant "taxes".\n'

SUMMARIES = {
    "python": (PYTHON, 'psycopg.errors.UndefinedTable: relation "raw.orders" does not exist'),
    "chained": (CHAINED, "orders.LoadError: orders were not loaded"),
    "airflow": (
        AIRFLOW,
        "requests.exceptions.HTTPError: 503 Server Error: Service Unavailable for url: https://stock.example/items",
    ),
    "group": (GROUP, "TimeoutError: no answer from the warehouse"),
    "java": (JAVA, "java.io.IOException: No space left on device"),
    "java alone": (JAVA_ALONE, "java.lang.IllegalStateException: connection pool is exhausted"),
    "pyspark": (PYSPARK, "com.amazonaws.AmazonS3Exception: Access Denied (Status Code: 403)"),
    "node": (NODE, "Error: connect ECONNREFUSED 10.0.0.7:5432"),
    "go": (GO, "panic: runtime error: index out of range [5] with length 3"),
    "dbt": (
        DBT,
        'Database Error in model orders (models/marts/orders.sql): relation "raw.orders" does not exist',
    ),
    "dbt test": (
        DBT_TEST,
        "Failure in test not_null_orders_id (models/orders.yml): Got 3 results, configured to fail if != 0",
    ),
    "github": (GITHUB, "curl: (28) Connection timed out after 30001 milliseconds"),
    "postgres": (POSTGRES, 'ERROR: column "tax" does not exist'),
    "a log that names no error": ("starting\nreading page 1\nreading page 2\nCommand exited with code 3\n", "reading page 2"),
    "nothing but the exit code": ("Process completed with exit code 1.", "Process completed with exit code 1."),
    "one line": ("boom", "boom"),
    "a line with a time": ("2026-03-01 08:00:00,123 ERROR no disk", "no disk"),
    "colours": ("\x1b[31mError: no disk\x1b[0m", "Error: no disk"),
    "escaped line ends": (PYTHON.replace("\n", "\\n"), 'psycopg.errors.UndefinedTable: relation "raw.orders" does not exist'),
    "a traceback that is cut off": ('Traceback (most recent call last):\n  File "a.py", line 1\n', None),
    "html": ("<!DOCTYPE html><html><head><title>\n 502 Bad Gateway </title></head><body/></html>", "502 Bad Gateway"),
    "colours only": ("\x1b[31m", "\x1b[31m"),
    "a named cause": (
        "Sync failed: exit code 1\n  cause: 429 Too Many Requests, quota is used up\n  records before the failure: 7",
        "429 Too Many Requests, quota is used up",
    ),
    "what came before the error": (
        "a.sh: line 7: /out/a.csv: No space left on device\na.sh: 7 rows written before the error\nexit status 1",
        "a.sh: line 7: /out/a.csv: No space left on device",
    ),
    "a reason that tells nothing": ("Reason: Error\nError: disk quota exceeded", "Error: disk quota exceeded"),
    "many bytes": ("ошибка: нет места на диске 💾\n", "ошибка: нет места на диске 💾"),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_summary_is_the_line_that_a_person_would_pick(name: str) -> None:
    text, wanted = SUMMARIES[name]
    summary = error_summary(text)
    assert wanted is None or summary == wanted
    assert "Traceback (most recent" not in summary
    assert summary and "\n" not in summary


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({"message": "no disk"}, "no disk"),
        ({"code": 7, "error": {"message": "no disk", "type": "x"}}, "no disk"),
        ({"errors": [{"detail": ""}, {"detail": "no disk"}]}, "no disk"),
        ([{"msg": "no disk"}], "no disk"),
        ({"error": "rate limited", "status": 429}, "rate limited"),
        ({"message": PYTHON}, 'psycopg.errors.UndefinedTable: relation "raw.orders" does not exist'),
    ],
)
def test_the_message_of_a_json_error_is_shown(document: object, wanted: str) -> None:
    assert error_summary(orjson.dumps(document).decode()) == wanted
    assert error_summary(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()) == wanted


def test_json_that_was_cut_off_still_shows_its_message() -> None:
    assert error_summary('{"code": 7, "message": "no \\"disk\\"", "trace": "aaaaaa') == 'no "disk"'


def test_json_without_a_message_is_shown_as_it_is() -> None:
    assert error_summary('{"code": 7}') == '{"code": 7}'


@pytest.mark.parametrize("text", [None, "", " \n\t "])
def test_the_summary_of_nothing_is_empty(text: str | None) -> None:
    assert error_summary(text) == ""


def test_a_long_summary_is_cut_at_the_limit() -> None:
    assert error_summary("Error: " + "ä" * 500, 20) == "Error: " + "ä" * 12 + "…"
    assert error_summary("x" * 20, 20) == "x" * 20


@given(st.text(), st.integers(1, 200))
def test_any_text_has_a_summary_of_one_line_within_the_limit(text: str, limit: int) -> None:
    summary = error_summary(text, limit)
    assert len(summary) <= limit
    assert "\n" not in summary and "Traceback (most recent call last):" not in summary
    assert bool(summary) == bool(text.strip())


@pytest.mark.parametrize(
    "hostile",
    [
        "a" * 400_000,
        "a." * 200_000,
        "Error in " + "a " * 200_000,
        '{"msg":' * 50_000,
        "| " * 200_000,
        "\n" * 400_000 + "x",
    ],
    ids=["word", "dotted", "dbt", "json", "gutter", "lines"],
)
def test_a_hostile_text_takes_linear_time(hostile: str) -> None:
    # A search that is quadratic in the length would take minutes here.
    assert 0 < len(error_summary(hostile)) <= SUMMARY_CHARS
    assert len(error_excerpt(hostile)) <= MAX_ERROR_BYTES


# --- what is kept ------------------------------------------------------------------------------------------------------


FRAMES = "".join(f'  File "/app/step_{n}.py", line {n}, in call\n    return step_{n}(value)\n' for n in range(2_000))
LOG = "".join(f"2026-03-01 08:00:00,000 INFO page {n} was read\n" for n in range(3_000))
LONG = {
    "a deep traceback": "Traceback (most recent call last):\n" + FRAMES + "ValueError: too deep\n",
    "a log before the traceback": LOG + PYTHON,
    "a log after the traceback": PYTHON + LOG,
    "a traceback in the middle of a log": LOG + CHAINED + LOG,
    "a first traceback at the top, a second one far below": PYTHON
    + "\nDuring handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n"
    + FRAMES
    + "orders.LoadError: orders were not loaded\n",
    "an exception with an endless statement": PYTHON.splitlines()[0]
    + '\n  File "a.py", line 1, in f\n    g()\nsqlalchemy.exc.DataError: value too long\n[SQL: INSERT '
    + "x" * 50_000
    + "]\n",
    "java": JAVA.replace("\t... 31 more\n", "\tat a.b.C(D.java:1)\n" * 2_000),
    "dbt": LOG + DBT + "".join(f"08:00:10  Skipped relation {n}\n" for n in range(2_000)),
    "an error line in the middle": LOG + "2026-03-01 08:00:00,000 ERROR no space left on device\n" + LOG,
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("limit", [1_000, MAX_ERROR_BYTES])
def test_a_long_text_keeps_what_its_summary_shows(name: str, limit: int) -> None:
    text = LONG[name]
    kept = error_excerpt(text, limit)
    assert len(kept.encode()) <= limit < len(text)
    assert error_summary(kept) == error_summary(text)
    assert error_summary(text) in kept or error_summary(text).split(": ")[1] in kept
    assert f" of {len(text):,} characters left out" in kept


def test_the_head_and_the_end_of_a_long_text_are_kept() -> None:
    kept = error_excerpt("first line\n" + LOG + "last line\n")
    assert kept.startswith("first line\n2026") and kept.endswith("page 2999 was read\nlast line\n")


def test_json_keeps_its_message() -> None:
    text = orjson.dumps({"trace": ["x" * 99] * 200, "message": "no disk", "log": ["y" * 99] * 200}).decode()
    kept = error_excerpt(text)
    assert len(kept) <= MAX_ERROR_BYTES
    assert error_summary(kept) == "no disk"


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40), st.integers(1_000, 2_000))
@settings(max_examples=50)
def test_an_excerpt_fits_in_its_bytes_and_is_cut_between_characters(part: str, limit: int) -> None:
    text = part * (4_000 // len(part))
    kept = error_excerpt(text, limit)
    assert len(kept.encode()) <= limit
    assert error_excerpt(kept, limit) == kept
    assert "\ufffd" in text or "\ufffd" not in kept


@pytest.mark.parametrize(("text", "same"), [("x" * 8_000, True), ("x" * 8_001, False), ("é" * 4_000, True)])
def test_the_limit_counts_bytes(text: str, same: bool) -> None:
    assert (error_excerpt(text) == text) is same


SAME_ERROR = (
    (
        'connection to server at "10.2.3.4", port 5432 failed: Connection refused',
        'connection to server at "192.168.7.20", port 5433 failed: Connection refused',
    ),
    (
        "No such file or directory: '/data/acme/2026-03-01/orders.csv'",
        "No such file or directory: '/data/zeta/2026-03-02/stock/items.csv'",
    ),
    (
        "HTTPError: 503 Server Error for url: https://api.acme.example/v1/x?y=1",
        "HTTPError: 503 Server Error for url: https://api.zeta.example/v2/orders",
    ),
    ("could not connect to db-1.acme.internal:5432", "could not connect to warehouse.zeta.com:5439"),
    (
        "Task run_20260301T0600 was lost (job 3f2a91bc-0000-4000-8000-0123456789ab)",
        "Task run_20260302T0600 was lost (job 91bc3f2a-0000-4000-8000-0123456789ac)",
    ),
    (
        "2026-03-01 08:00:02 ERROR - row 17 of 1,204: 12.5 is no date",
        "2026-03-02 09:10:12 ERROR - row 3 of 981: 7 is no date",
    ),
    ("permission denied for bob@acme.com", "permission denied for ann@zeta.example.org"),
    (PYTHON, PYTHON.replace("line 12", "line 99").replace("/opt/airflow", "/srv/other")),
)


@pytest.mark.parametrize(("one", "other"), SAME_ERROR)
def test_the_same_error_elsewhere_has_the_same_fingerprint(one: str, other: str) -> None:
    assert error_summary(one) != error_summary(other) or one is PYTHON
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("KeyError: 'price'", "KeyError: 'id'"),
        ("HTTPError: 503 Server Error", "HTTPError: 401 Unauthorized"),
        ("exited with code 137", "exited with code 1"),
        ("read/write failed", "input/output failed"),
        ("disk full", "disk quota exceeded"),
    ],
)
def test_different_errors_have_different_fingerprints(one: str, other: str) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_a_fingerprint_reads_as_the_error_that_it_stands_for() -> None:
    text = "HTTPError: 503 Server Error for url: https://api.acme.example/v1/x?y=1 after 3 attempts"
    assert fingerprint(text) == "httperror: 503 server error for url: <url> after <n> attempts"
    assert fingerprint(None) == fingerprint(" \n") == ""


@given(st.text(max_size=400))
@settings(max_examples=200, deadline=None)
def test_any_text_has_a_fingerprint_on_one_line(text: str) -> None:
    once = fingerprint(text)
    assert "\n" not in once
    assert once == once.strip() == once.lower()


_numbered = st.sampled_from(
    ["404", "code 7", "0x1F", "0X", "2026-01-01 00:00:00+00", "10.0.0.1:80", "a1b2c3d", "/var/9/x", "abc12345", "_7"]
)


@given(st.lists(_numbered | st.text(alphabet="09ax:/-. ", max_size=8), max_size=8).map(" ".join))
def test_a_fingerprint_is_the_same_with_and_without_its_short_cut(text: str) -> None:
    line = error_text.error_summary(text, 300)
    assert fingerprint(text) == error_text._common_parts.__wrapped__(line)
