"""Seeded generator of documents with questions whose answers it computes itself.

Tier "easy" is what a model of 164,288 parameters learns in a minute; tier "hard" reads like long financial reports and
bundles of contracts.
"""

from hybridflow.data.synth.conversations import generate_conversations
from hybridflow.data.synth.spec import SynthSpec, generate_row, generate_rows

__all__ = ["SynthSpec", "generate_conversations", "generate_row", "generate_rows"]
