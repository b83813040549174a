"""Real packets through a real kernel, in network namespaces of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.network import Actions, Network, make_network

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.netns)


@pytest.fixture
def network() -> Iterator[Network]:
    with make_network() as made:
        yield made


@pytest.fixture
def actions(tmp_path: Path) -> Actions:
    return Actions(tmp_path / "actions.d")
