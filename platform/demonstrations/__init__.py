"""Scripted demonstrations, written as LeRobot v3.0 data sets."""
