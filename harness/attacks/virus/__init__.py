"""Virus and Mixing: benign examples with a harmful example behind the answer, as it is or optimized past a guard."""
