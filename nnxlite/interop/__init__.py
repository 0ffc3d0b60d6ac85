"""Models outside of the process: files."""
