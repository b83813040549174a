"""Settings for all tests."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import nfpkd
from support.required import give_up

# Deadlines measure the machine, not the code.
settings.register_profile("nfpkd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Where coverage is measured, which takes thrice as long; what is covered is the same each time.
settings.register_profile("measured", parent=settings.get_profile("nfpkd"), max_examples=20, derandomize=True)
settings.register_profile("thorough", parent=settings.get_profile("nfpkd"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "nfpkd"))

# capabilities(7): what namespaces take, and what a firewall in them takes.
_CAP_NET_ADMIN = 12
_CAP_SYS_ADMIN = 21


def pytest_report_header() -> str:
    return f"nfpkd: {Path(nfpkd.__file__).parent}"


def pytest_configure(config: pytest.Config) -> None:
    # tox is there to test the wheel; whoever runs pytest by hand may test what they like.
    if "TOX_ENV_NAME" in os.environ and Path(nfpkd.__file__).is_relative_to(config.rootpath / "nfpkd"):
        raise pytest.UsageError("the tests found the repository's nfpkd, not the installed one")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("netns") is None or _may_use_namespaces():
        return
    give_up("network namespaces need root: CAP_SYS_ADMIN and CAP_NET_ADMIN are missing")


def _may_use_namespaces() -> bool:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    needed = 1 << _CAP_NET_ADMIN | 1 << _CAP_SYS_ADMIN
    return found is not None and int(found[1], 16) & needed == needed
