"""From the store to tidy rows."""
