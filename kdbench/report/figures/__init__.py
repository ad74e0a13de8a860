"""The figures, for the page and for papers: each is drawn once and saved as SVG and PNG. One module a figure.

Only the modules of this package know matplotlib, and they are imported when figures are drawn.
"""
