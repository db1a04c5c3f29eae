"""One cell's settings, and the chain of stages that they describe."""
