"""The verbs of the command line: one module each, with a function `run(args) -> exit code`, imported when called."""
