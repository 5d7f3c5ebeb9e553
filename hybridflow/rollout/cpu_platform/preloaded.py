"""What SGLang's scheduler and detokenizer import before they do anything; imported once by the server that forks them.

Garbage collection leaves these objects alone from then on, so that the pages they lie in stay shared.
"""

import gc

import sglang.srt.managers.detokenizer_manager
import sglang.srt.managers.scheduler
import sglang.srt.model_executor.model_runner
import sglang.srt.models.registry  # noqa: F401  all model classes

gc.freeze()
