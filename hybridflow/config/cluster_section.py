"""`[cluster]`: how the parts of a run reach each other."""

from __future__ import annotations

import ipaddress

from pydantic import field_validator

from hybridflow.config.section import Section


class ClusterSection(Section):
    """Between machines; on one machine everything is on the loopback, or in a folder of this user."""

    network: str = ""
    """Network over which nodes speak, such as "10.1.0.0/16": each listens on its address in it, and on no other. Empty:
    on the address by which Ray knows the node."""

    @field_validator("network")
    @classmethod
    def _check_network(cls, network: str) -> str:
        try:
            if network:
                ipaddress.ip_network(network)
        except ValueError as error:
            raise ValueError(f"{error}. Remedy: write the network of the nodes, such as 10.1.0.0/16") from error
        return network
