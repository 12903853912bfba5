"""The night: from lessons to a promoted adapter, and when it runs."""
