"""ERNIE-ViL 2.0 (arXiv 2209.15270): an image tower and a text tower that meet in one space."""
