"""The lock holds every package to a hash, and tells what of it is not installed."""

from __future__ import annotations

from importlib.metadata import version
from types import ModuleType

import pytest

HASH = "    --hash=sha256:" + "a" * 64


def test_every_line_of_the_lock_but_torch_has_hashes(lock: ModuleType) -> None:
    text = lock.LOCK.read_text()

    assert lock.unhashed(text) == []
    assert len(lock.pins(text)) > 140
    assert set(lock.pins(text)) >= {"torch", "uv", "megatron-core"}


def test_a_line_without_a_hash_is_named(lock: ModuleType) -> None:
    text = f"# a head==1\na==1 \\\n{HASH} \\\n{HASH}\nb_c==2\nd==3 --hash=sha256:{'b' * 64}\ntorch==2.13.0\ne==4\n"

    assert lock.unhashed(text) == ["b_c", "e"]
    assert lock.pins(text) == {"a": "1", "b_c": "2", "d": "3", "torch": "2.13.0", "e": "4"}


def test_what_is_not_installed_is_named_whatever_the_spelling(lock: ModuleType) -> None:
    here = version("typing_extensions")
    text = (
        f"Typing.Extensions=={here} \\\n{HASH}\npydantic==0.1\nnot-here==1\ntorch=={version('torch').split('+')[0]}\n"
    )

    assert lock.missing(text) == ["pydantic==0.1", "not-here==1"]


def test_renewing_keeps_head_order_and_pins_and_takes_the_wheels_of_all_pythons(
    lock: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "py3-none-any",
        "cp311-cp311-manylinux_2_28_x86_64",
        "cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64",
    ]
    names += [
        "cp314-cp314-manylinux_2_28_x86_64",
        "cp312-cp312-musllinux_1_2_x86_64",
        "cp39-abi3-manylinux_2_38_x86_64",
    ]
    names += [
        "cp312-cp312-manylinux_2_28_aarch64",
        "cp312-cp312-macosx_11_0_arm64",
        "cp313-cp313t-manylinux_2_28_x86_64",
    ]
    wheels = [
        {"url": f"https://somewhere/a_b-1-{name}.whl", "hash": f"sha256:{number:064x}"}
        for number, name in enumerate(names)
    ]
    monkeypatch.setattr(lock, "ask_index", lambda wanted: {"a-b": wheels})

    renewed = lock.renew(f"# head\na_b==1 \\\n{HASH}\ntorch==2\n")

    hashes = [f"    --hash=sha256:{number:064x}" for number in (0, 1, 2, 5)]
    assert renewed == "# head\n" + " \\\n".join(["a_b==1", *hashes]) + "\ntorch==2\n"


def test_a_package_without_a_wheel_for_one_of_the_pythons_is_refused(
    lock: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = {"path": "/wheels/a-1-cp311-cp311-manylinux_2_28_x86_64.whl", "hash": "sha256:0"}
    monkeypatch.setattr(lock, "ask_index", lambda wanted: {"a": [wheel]})

    with pytest.raises(SystemExit, match=r"a: no wheel for Python 3\.12 and glibc 2\.34"):
        lock.renew("a==1\n")
