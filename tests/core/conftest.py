"""Settings of hypothesis for this folder: the same examples in every run, and no clock in the verdict."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("core", derandomize=True, database=None, deadline=None, max_examples=100)
settings.load_profile("core")
