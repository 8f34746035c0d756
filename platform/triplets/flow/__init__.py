"""3D flow of a window: tracking, lifting and camera motion."""
