"""Statistics over seeds and prompts."""
