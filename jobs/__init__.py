"""Entry points: parse, call the platform, print the result."""
