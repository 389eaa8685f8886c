"""The verbs of the command line, one module each, imported when called.

Each has `COMMAND`, from which tyro reads the options (a dictionary where the verb has verbs of its own), and
`run(args) -> exit code`.
"""
