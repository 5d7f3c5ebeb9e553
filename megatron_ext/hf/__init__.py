"""Weights and configs in Hugging Face form: read, cut for a rank, gathered, written."""
