"""Launchers: a resolved config becomes processes that end in `dfer.jobs.train`."""
