"""The real kernel, in a network namespace that nothing else uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nfpkd.demo.namespaces import Namespace
from nfpkd.firewall.kernel import Kernel, NftablesKernel
from support.fake_kernel import FakeKernel


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with Namespace("kernel") as made:
        yield made


@pytest.fixture(scope="module")
def shared_kernel(namespace: Namespace) -> NftablesKernel:
    """The namespace's kernel, as the tests of a module leave it to each other; use it inside the namespace."""
    with namespace.entered():
        return NftablesKernel()


@pytest.fixture
def real_kernel(namespace: Namespace, shared_kernel: NftablesKernel) -> Iterator[NftablesKernel]:
    """The namespace's kernel without any table; the test runs inside the namespace."""
    namespace.run("nft", "flush", "ruleset")
    with namespace.entered():
        yield shared_kernel


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.netns)])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Both kernels in turn, empty: what holds for one must hold for the other."""
    if request.param == "fake":
        return FakeKernel()
    found: NftablesKernel = request.getfixturevalue("real_kernel")
    return found
