"""Stands in for torch_memory_saver, which needs CUDA: pauses memory of this process, addresses unchanged.

SGLang allocates its weights and its KV pool inside `region(tag)`, and calls `pause(tag)` and `resume(tag)` when it is
asked to release its memory and to take it again. On CUDA the physical pages behind the tensors go back to the device,
and come back with undefined content. Here they go back to the system (madvise, MADV_DONTNEED) and come back as zeros
when they are touched. So `resume` has nothing to do.

Of each storage only the pages that lie wholly in it are given back; up to two pages of each stay.
"""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MADV_DONTNEED = 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _Recorder(TorchDispatchMode):
    """Notes the storages that operations make, and not those of their inputs."""

    def __init__(self, found: list[StorageWeakRef]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if _is_on_host(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _is_on_host(leaf) and _address(leaf) not in given:
                self._found.append(StorageWeakRef(leaf.untyped_storage()))
        return result


def _is_on_host(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" and leaf.layout == torch.strided


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _MemorySaver:
    """The calls that SGLang's TorchMemorySaverAdapter makes."""

    enabled = True
    hook_mode = "host"

    def __init__(self) -> None:
        self._storages: dict[str, list[StorageWeakRef]] = {}

    @contextmanager
    def region(self, tag: str, enable_cpu_backup: bool = False) -> Iterator[None]:
        """Memory that is allocated inside, and lives when `pause` is called, belongs to `tag`."""
        if enable_cpu_backup:
            raise NotImplementedError("torch_memory_saver on a CPU keeps no copy: the host is the device")
        with _Recorder(self._storages.setdefault(tag, [])):
            yield

    def pause(self, tag: str) -> None:
        """Gives the pages of this tag back to the system; their content is gone."""
        alive: dict[int, StorageWeakRef] = {}
        for reference in self._storages.get(tag, []):
            if reference.expired():
                continue
            storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is not None and storage.nbytes() and storage.data_ptr() not in alive:
                alive[storage.data_ptr()] = reference
                _give_back(storage.data_ptr(), storage.nbytes())
        self._storages[tag] = list(alive.values())

    def resume(self, tag: str) -> None:
        """The pages come back when they are touched."""

    @contextmanager
    def disable(self) -> Iterator[None]:
        yield

    @contextmanager
    def cuda_graph(self, **_: object) -> Iterator[None]:
        raise NotImplementedError("there are no CUDA graphs on a CPU")
        yield


def _give_back(address: int, num_bytes: int) -> None:
    page = mmap.PAGESIZE
    first = -(-address // page) * page
    length = (address + num_bytes) // page * page - first
    if length > 0 and _libc.madvise(first, length, MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), f"madvise of {length} bytes failed")


@contextmanager
def configure_subprocess() -> Iterator[None]:
    """Nothing has to be loaded before a process of SGLang starts."""
    yield


torch_memory_saver = _MemorySaver()
