"""Simulated environments behind one contract."""
