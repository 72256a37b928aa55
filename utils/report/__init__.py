"""The out-of-fold report: statistics, tables, plots and a page, all made from a run's files.

    python -m utils.report logs/<run>        # make the report of a finished run again
"""
