from apex import CALLS
from tests.dist_cpu.stand_in_adam import StandInAdam


class FusedAdam(StandInAdam):
    calls = CALLS
