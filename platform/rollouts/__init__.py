"""Policies on frozen encoders, rolled out in the simulator: which encoder helps, and how sure?"""
