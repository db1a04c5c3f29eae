"""W&B sync: uploads a copy of the store to Weights & Biases."""
