"""Policies that act from an encoder's features: torch alone."""
