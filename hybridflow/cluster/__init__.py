"""Ray: the session, the placement of actors, and the calls to them."""
