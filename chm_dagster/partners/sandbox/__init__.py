"""A partner to try CHM on: a real HTTP server of the generic API over a made-up but realistic world.

The world's state is a pure function of (seed, time): nothing is stored, so a restart changes nothing, while runs
start, progress, fail, flake, get re-run and arrive late by themselves as time goes by.
"""

from chm_dagster.partners.sandbox.catalogue import SandboxPipeline
from chm_dagster.partners.sandbox.server import SettableClock, create_app
from chm_dagster.partners.sandbox.serving import serve_in_thread
from chm_dagster.partners.sandbox.world import World

__all__ = ["SandboxPipeline", "SettableClock", "World", "create_app", "serve_in_thread"]
