"""A judge behind an OpenAI-compatible endpoint: rubric, requests, stored replies, limits."""
