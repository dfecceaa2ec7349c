"""Make tables, plots and pages from results."""
