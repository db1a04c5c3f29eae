"""Data of a report: reads the store into tidy rows."""
