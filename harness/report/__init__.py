"""From the store to tidy rows, statistics over seeds and prompts, tables, figures and a page."""

from harness.report.publish import Published, publish, report, write
from harness.report.render import FORMATS

__all__ = ["FORMATS", "Published", "publish", "report", "write"]
