"""Sharded checkpoints and Hugging Face folders: written in one piece, read without trust."""
