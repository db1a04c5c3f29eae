"""The mirror: what the store holds of a sweep, shown on Weights & Biases. The store is the truth."""
