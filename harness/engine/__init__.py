"""The engine: stages, plans, the store and claims. It depends on no model, scheduler or configuration library."""
