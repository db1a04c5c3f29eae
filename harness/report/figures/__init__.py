"""Figures of a report, for the page (plotly) and for papers (matplotlib)."""
