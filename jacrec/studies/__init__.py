"""Studies: tasks × seeds × settings, swept by local processes or a Ray cluster, resumable at any point."""
