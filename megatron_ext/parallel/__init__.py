"""Layouts, process groups, and how ranks meet."""
