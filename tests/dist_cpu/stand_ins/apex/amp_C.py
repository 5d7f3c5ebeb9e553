"""Compiled by apex; here the name alone."""
