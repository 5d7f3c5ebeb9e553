"""How a run is opened and ended: its parts, how weights travel, its folder, its processes' end."""
