"""Fixtures that several tests of partners share."""

import logging

import pytest


@pytest.fixture
def all_logs(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Every log record, also those that the HTTP libraries would write."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "hpack"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog
