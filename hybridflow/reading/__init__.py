"""Text that somebody else wrote, read within bounds of size, depth and digits: JSON, TOML, lines, archives.

What is beyond a bound is `Unreadable`, with what is wrong and the remedy; the caller adds file and place. So a file of
a few kilobytes costs neither gigabytes nor minutes, and a user reads a message in place of a traceback.
"""

from hybridflow.reading.bounded_json import Unreadable, check_pairs, parse_json, read_json
from hybridflow.reading.bounded_toml import parse_toml
from hybridflow.reading.budget import ExpansionBudget, iter_lines

__all__ = ["ExpansionBudget", "Unreadable", "check_pairs", "iter_lines", "parse_json", "parse_toml", "read_json"]
