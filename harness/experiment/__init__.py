"""The settings of a cell, and the chain of stages built from them."""
