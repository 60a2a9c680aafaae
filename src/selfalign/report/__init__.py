"""The report: a pure reader of a run directory."""

from selfalign.report.html import write_report

__all__ = ["write_report"]
