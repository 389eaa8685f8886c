"""Analysis of whole studies: statistics, tables, plots and a report, compared with the paper's numbers."""
