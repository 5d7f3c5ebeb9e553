"""`[cluster]`: the processes of a run, and how they reach each other."""

from __future__ import annotations

import ipaddress

from pydantic import Field, field_validator

from hybridflow.config.section import Section


class ClusterSection(Section):
    """The processes of a run."""

    environment: list[str] = Field(default_factory=list)
    """Environment variables that train workers, engines and reward workers need, by name. They get paths, locale,
    proxies, thread limits and what CUDA, NCCL, torch, SGLang and Ray are set by anyway, and no token of their user."""
    network: str = ""
    """Network over which nodes speak, such as "10.1.0.0/16": each listens on its address in it, and on no other. Empty:
    on the address by which Ray knows the node. On one machine all is on the loopback, or in a folder of this user."""

    @field_validator("network")
    @classmethod
    def _check_network(cls, network: str) -> str:
        try:
            if network:
                ipaddress.ip_network(network)
        except ValueError as error:
            raise ValueError(f"{error}. Remedy: write the network of the nodes, such as 10.1.0.0/16") from error
        return network
