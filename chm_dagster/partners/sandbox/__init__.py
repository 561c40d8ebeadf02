"""A partner for trying CHM: a real HTTP server that speaks CHM's own API over a fictional but realistic world.

The state of the world is a pure function of (seed, time). Nothing is stored, so a restart changes nothing, while runs
start, progress, fail, flake, are re-run and arrive late as time passes.
"""

from chm_dagster.partners.sandbox.catalogue import SandboxPipeline
from chm_dagster.partners.sandbox.server import SettableClock, create_app, serve_in_thread
from chm_dagster.partners.sandbox.world import World

__all__ = ["SandboxPipeline", "SettableClock", "World", "create_app", "serve_in_thread"]
