"""The LeRobot format, shared by what writes it and what reads it."""
