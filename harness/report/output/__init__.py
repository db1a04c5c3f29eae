"""Output of a report: text formats, the HTML page, and files."""
