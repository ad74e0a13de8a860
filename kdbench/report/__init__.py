"""The report: from a results folder to tables, figures and a page.

    results folder -> frame (one row per trial) -> leaderboard (one row per pair and method) -> study
                   -> sections, each with its template -> render: index.html, tables, plots/

To add a section, write a function in ``sections.py`` and a template of the same name.
"""
