from tests.dist_cpu.stand_in_adam import StandInAdam
from transformer_engine import CALLS


class FusedAdam(StandInAdam):
    calls = CALLS
