"""Finds the answer in a response."""
