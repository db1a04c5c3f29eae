"""From the store to tidy rows, statistics over seeds, and text."""

from harness.report.publish import Published, named, publish, report
from harness.report.render import FORMATS

__all__ = ["FORMATS", "Published", "named", "publish", "report"]
