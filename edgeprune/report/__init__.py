"""The report: everything a build found, as ``report.json`` and as one page for people."""

from edgeprune.report.compose import compose
from edgeprune.report.page import render, write_report
from edgeprune.report.schema import Report

__all__ = ["Report", "compose", "render", "write_report"]
