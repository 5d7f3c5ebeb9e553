"""Imports of SGLang's scheduler and detokenizer, made once by the server that forks them.

Garbage collection leaves these objects alone from then on, so that the pages they lie in stay shared.

While it imports, the server would not notice that its engine is gone; the kernel ends it then, and SGLang its own.
"""

import gc
import os
import signal

from hybridflow.guard.process_tree import signalled_when_parent_dies

signalled_when_parent_dies(os.getppid(), signal.SIGKILL)

import sglang.srt.managers.detokenizer_manager  # noqa: E402
import sglang.srt.managers.scheduler  # noqa: E402
import sglang.srt.model_executor.model_runner  # noqa: E402
import sglang.srt.models.registry  # noqa: E402, F401  all model classes

gc.freeze()
