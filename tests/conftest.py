"""Settings for all tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Deadlines measure the machine, not the code.
settings.register_profile("nfpkd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("nfpkd"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "nfpkd"))
