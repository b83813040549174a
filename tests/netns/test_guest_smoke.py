"""The shortest way through everything; in the guest, with the kernel's own queue statement.

The guest is a stock Debian kernel (contrib/guest).  The kernel outside may
or may not have nft_queue.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfpkd.demo.namespaces import Namespace
from nfpkd.demo.process import NFPKD
from nfpkd.firewall.kernel import NftablesKernel

pytestmark = [pytest.mark.netns, pytest.mark.guest]

IN_GUEST = os.environ.get("NFPKD_GUEST") == "1"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("smoke") as namespace:
        yield namespace


@pytest.fixture
def has_queue_statement(namespace: Namespace) -> bool:
    with namespace.entered():
        return NftablesKernel().has_queue_statement


def test_demo_passes() -> None:
    done = subprocess.run([*NFPKD, "demo"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_guest_has_the_queue_statement(has_queue_statement: bool) -> None:
    # Outside either answer is right; asking must work everywhere.
    assert has_queue_statement or not IN_GUEST


def test_status_names_what_the_kernel_has(namespace: Namespace, has_queue_statement: bool, tmp_path: Path) -> None:
    rule_file = tmp_path / "ssh.json"
    rule_file.touch(mode=0o600)
    rule_file.write_text(json.dumps([{"name": "ssh", "key": "secret", "port": 22}]))
    namespace.run(*NFPKD, "apply", "--actions", str(tmp_path))
    status = json.loads(namespace.run(*NFPKD, "status", "--format", "json"))
    assert status["intact"]
    assert status["queue_target"] == ("nft_queue" if has_queue_statement else "nft_compat")
