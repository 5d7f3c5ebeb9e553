"""Buckets that go from node to node by Ray's object stores: which stores are too small."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridflow.cluster.bundles import Place
from hybridflow.errors import PlacementError
from hybridflow.runtime.transport import check_object_stores, largest_bucket
from hybridflow.trainer.layout import read_model

TINY = Path(__file__).parents[3] / "configs/models/tiny"
MIB = 2**20


def places(**nodes: tuple[int, int]) -> list[Place]:
    """By node: number of slots, and MiB of its store."""
    return [
        Place(node, f"address of {node}", store_bytes=mib * MIB)
        for node, (count, mib) in nodes.items()
        for _ in range(count)
    ]


def test_a_tensor_above_the_bucket_has_one_of_its_own() -> None:
    """The tiny model's embedding is its largest tensor."""
    hf_config = read_model(TINY)
    embedding = hf_config.vocab_size * hf_config.hidden_size * 2
    assert largest_bucket(hf_config, 2, embedding) == (embedding, "")
    assert largest_bucket(hf_config, 2, embedding - 1) == (embedding, "model.embed_tokens.weight")
    assert largest_bucket(hf_config, 4, embedding)[0] == 2 * embedding


@pytest.mark.parametrize(
    ("senders", "store_a", "store_b", "refused"),
    [
        # Two buckets ahead and three on the way at the sender, three where it only has engines.
        ([0], 50, 30, ""),
        ([0], 49, 30, r"Node address of a needs room for 5 of them, 50 MiB, and its store has 49 MiB"),
        ([0], 50, 29, r"Node address of b needs room for 3 of them, 30 MiB, and its store has 29 MiB"),
        # Two stages on one node, or one on each.
        ([0, 1], 70, 30, ""),
        ([0, 1], 69, 30, r"Node address of a needs room for 7 of them"),
        ([0, 2], 50, 49, r"Node address of b needs room for 5 of them"),
    ],
)
def test_what_is_on_the_way_has_to_fit(senders: list[int], store_a: int, store_b: int, refused: str) -> None:
    where = places(a=(2, store_a), b=(1, store_b))
    if not refused:
        check_object_stores(where, senders, (10 * MIB, ""))
        return
    with pytest.raises(PlacementError, match=refused):
        check_object_stores(where, senders, (10 * MIB, ""))


def test_the_remedy_fits_the_reason() -> None:
    where = places(a=(1, 1), b=(1, 1))
    with pytest.raises(
        PlacementError, match=r"lower rollout\.weight_bucket_mib, start Ray .*--object-store-memory=52428800"
    ):
        check_object_stores(where, [0], (10 * MIB, ""))
    with pytest.raises(
        PlacementError, match=r"\(w alone has as much\).*Remedy: start Ray .*rollout\.own_devices = true"
    ):
        check_object_stores(where, [0], (10 * MIB, "w"))
