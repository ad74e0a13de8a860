"""The report: from a results folder to tables, figures and a page that say what they rest on.

    results folder -> frame (one row a trial) -> leaderboard (one row a pair and method) -> study
                   -> sections, each with its template -> render: index.html, leaderboard.*, trials.csv, plots/

Pages grow by sections: a function in ``sections.py`` and a template of its name.
"""
