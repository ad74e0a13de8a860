"""The figures, for the page and for papers: each is drawn once and saved as SVG and PNG. One module per figure.

Only this package imports matplotlib, and it is imported only when figures are drawn.
"""
