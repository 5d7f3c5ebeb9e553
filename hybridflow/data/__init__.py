"""Prompt rows: their schema, files, templates, tokenisation and order, and the generator of synthetic documents.

Pure: imports no ray, zmq, sglang or megatron. `Row` files follow the schema of DocQA-RL-1.6K.
"""
