"""What failed runs of the sandbox say: several lines, as real tools write them."""

from chm_dagster.domain.inventory import Platform

_PYTHON = (
    """Traceback (most recent call last):
  File "/app/pipelines/{name}.py", line {line}, in load_batch
    cursor.copy_from(buffer, table)
psycopg.errors.NotNullViolation: null value in column "{column}" of relation "{name}" violates not-null constraint
DETAIL:  Failing row contains ({rows}, null, 2024-01-31, EUR).""",
    """Traceback (most recent call last):
  File "/app/pipelines/{name}.py", line {line}, in fetch_page
    response.raise_for_status()
HTTPStatusError: Server error '503 Service Unavailable' for url 'https://api.example.com/v2/{name}'
Task exited with return code 1 after 3 tries.""",
    """Task {name} was killed: out of memory
  limit: 4096 MiB, in use: 4095 MiB, rows held: {rows}
  hint: read the source in smaller batches""",
)
_DBT = (
    """Database Error in model {name} (models/marts/{name}.sql)
  column "{column}" does not exist
  LINE {line}:     sum({column}) as total
  compiled code at target/run/marts/{name}.sql
Done. PASS=41 WARN=1 ERROR=1 SKIP=6 TOTAL=49""",
    """Failure in test unique_{name}_{column} (models/marts/schema.yml)
  Got {rows} results, configured to fail if != 0
  compiled code at target/compiled/marts/schema.yml/unique_{name}_{column}.sql
Done. PASS=48 WARN=0 ERROR=1 SKIP=0 TOTAL=49""",
    """Database Error in model {name} (models/marts/{name}.sql)
  canceling statement due to statement timeout
  after 1800 s; 1 of 49 models did not finish""",
)
_SYNC = (
    """Sync failed: source connector stopped with exit code 1
  stream: {name}
  cause: 429 Too Many Requests, quota of 10000 calls an hour is used up
  records emitted before the failure: {rows}""",
    """Sync failed: destination refused the batch
  stream: {name}, batch {line}
  cause: value too long for column "{column}" (limit 255)
  action: widen the column or turn on truncation""",
    """Sync failed: could not sign in to the source
  stream: {name}
  cause: 401 invalid_grant, the refresh token has expired
  action: authorize the connection again""",
)
_SHELL = (
    """{name}.sh: line {line}: /mnt/outbox/{name}.csv: No space left on device
{name}.sh: {rows} rows written before the error
exit status 1""",
    """sftp: Connection closed by remote host
sftp: could not upload /mnt/outbox/{name}.csv ({rows} rows)
exit status 255""",
    """{name}.sh: line {line}: {column}: unbound variable
exit status 127""",
)
_BY_PLATFORM = {
    Platform.DBT: _DBT,
    Platform.AIRBYTE: _SYNC,
    Platform.FIVETRAN: _SYNC,
    Platform.VENDOR_API: _SYNC,
    Platform.CRON: _SHELL,
}
_COLUMNS = ("customer_id", "amount", "currency", "country_code", "updated_at")


def error_message(platform: Platform, name: str, chance: float, rows: int) -> str:
    """An error text for `platform`; `chance` in [0, 1) picks which, so that equal chances give equal texts."""
    texts = _BY_PLATFORM.get(platform, _PYTHON)
    pick = int(chance * len(texts) * len(_COLUMNS))
    column = _COLUMNS[pick % len(_COLUMNS)]
    return texts[pick // len(_COLUMNS)].format(name=name, column=column, rows=rows, line=20 + pick * 7)
