"""Exact resharding: a plan of copies from the trainer's shards to those of SGLang's ranks. Pure: needs no process."""
