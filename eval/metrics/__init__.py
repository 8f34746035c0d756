"""What is measured of an encoder or a policy."""
