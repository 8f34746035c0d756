"""Pure torch: the image, language and flow towers and their checkpoint folder."""
