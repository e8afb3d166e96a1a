"""Text files of any origin -> Parquet that is read as any other: lines, records, columns.

A file is read once, as a stream; a line that is no row becomes a row that is rejected.
"""
