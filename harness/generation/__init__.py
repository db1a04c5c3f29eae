"""Text generation: decoding settings and generation engines."""
