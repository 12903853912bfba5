"""The Python interface that every surface is a thin layer over."""
