"""Which of its addresses a node speaks from."""

from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from hybridflow.cluster.addresses import own_address, use_interface
from hybridflow.config.cluster_section import ClusterSection
from hybridflow.errors import PlacementError


def test_the_address_within_the_network_and_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "put back at the end")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "chosen")
    assert own_address("127.0.0.0/8") == "127.0.0.1"
    use_interface("127.0.0.1")
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "chosen")


def test_a_node_outside_of_the_network_is_an_error_with_its_addresses_and_the_remedy() -> None:
    with pytest.raises(PlacementError, match=r"cluster\.network = 198\.51\.100\.0/24: .*127\.0\.0\.1.*Remedy"):
        own_address("198.51.100.0/24")


@pytest.mark.parametrize("network", ["eth0", "10.1.0.0/33", "10.1.0.1/16"])
def test_what_is_no_network_is_refused_at_load(network: str) -> None:
    with pytest.raises(ValidationError, match="Remedy: write the network of the nodes"):
        ClusterSection(network=network)
