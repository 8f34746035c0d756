"""The training step, the loop and its wiring to Ray Train."""
