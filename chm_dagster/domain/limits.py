"""The limits of what CHM stores. Constraints of the database hold them as well."""

from datetime import UTC, datetime

INT_MAX = 2**31 - 1
BIGINT_MAX = 2**63 - 1

MAX_NAME_CHARS = 200
MAX_SLUG_CHARS = 100
MAX_CONNECTION_CHARS = 100
MAX_EXTERNAL_ID_CHARS = 512
MAX_DESCRIPTION_CHARS = 4_000
MAX_DESTINATION_CHARS = 500
MAX_ADDRESS_CHARS = 320
MAX_OWNER_CHARS = 200
MAX_TAGS = 20
MAX_TAG_CHARS = 50
MAX_MINUTES = 5_256_000
"""Ten years. A larger number is in the wrong unit."""

MAX_RUN_ID_CHARS = 512
MAX_KEY_CHARS = 255
MAX_ERROR_BYTES = 8_000
MAX_REASON_CHARS = 200
MAX_URL_CHARS = 2_000
MAX_PAYLOAD_BYTES = 64_000
MAX_DURATION_SECONDS = 3650 * 86_400.0
"""Ten years. A larger number is in the wrong unit."""

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
"""An earlier time is a partner's null value or a wrong unit, never a real run."""
FAR = datetime(9999, 12, 30, tzinfo=UTC)
"""The database holds no later time; see `tables.readable_time`."""
