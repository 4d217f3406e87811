"""Finished cells of a comparison as tables, figures and one self-contained page."""
