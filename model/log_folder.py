"""What tells an exported log, a folder of Parquet parts, from any other folder."""

MANIFEST = "manifest.json"
"""Names the parts. It is written last: without it the export is not complete."""
WORKING = "_export"
"""The folder in it that whoever exports works with; no part of the log."""
