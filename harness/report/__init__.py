"""Reports: tidy rows from the store, statistics over seeds and prompts, tables, figures and an HTML page."""

from harness.report.output.formats import FORMATS
from harness.report.output.publish import Published, publish, report, write

__all__ = ["FORMATS", "Published", "publish", "report", "write"]
