"""Configuration of a run: sections (sections.py) and how they are read (load.py)."""
