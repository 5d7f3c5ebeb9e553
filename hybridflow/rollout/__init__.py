"""Drives SGLang: engines, dispatch and their Ray actors."""
