"""The trainer: what a rank computes (`core.py`, free of Ray) and the actor around it (`actor.py`)."""
