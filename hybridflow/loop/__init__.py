"""The training loop and all that it is made of. `train_loop.py` is the place to start reading."""
