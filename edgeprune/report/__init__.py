"""The report: everything a build found, as ``report.json`` and as one page for people."""

from edgeprune.report.compose import compose
from edgeprune.report.page import render, write_report

__all__ = ["compose", "render", "write_report"]
