"""The image, language and flow encoders, their model and its folder, in plain torch."""
