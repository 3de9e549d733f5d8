"""Annotate thousands of CT volumes with one annotator. The README has the picture, the two commands and the tree."""

__version__ = "0.1.0"
