"""How a policy head reads an encoder: by its embedding, or by a small module over its tokens."""
