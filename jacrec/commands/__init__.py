"""The verbs of the command line, one module each, imported when called.

Each has `COMMAND`, from which tyro reads the options (a dictionary where the verb has verbs of its own), and
`run(args) -> exit code`.
"""

VERBS = {
    "data": "make, download, list and describe offline data sets",
    "models": "list and unpack trained runs that ship with the package",
    "train": "train policy, critic, world model and reward model on a data set",
    "rehearse": "choose controller settings by imagined episodes in a run's world model",
    "tune": "choose controller settings by racing real episodes, on seeds apart from the evaluation's",
    "eval": "compare base policy, MPC and MPC without a world model on the same environment seeds",
    "deploy": "run MPC and refresh its models from the collected transitions; resumable",
    "live": "play one episode in real time, with a deadline for each decision",
    "export": "write a run's networks as programs of torch.export or ONNX",
    "sweep": "train and evaluate a study: tasks × seeds × settings; resumable",
    "report": "write report.md with tables and plots for a run or a study",
    "demo": "data, training, evaluation and report on a small built-in task, in minutes",
    "bench": "run the benchmarks of a checkout",
    "compile": "compile the kernels for a run before its first decision",
    "doctor": "check this installation and suggest fixes",
}
SHELLS = ("bash", "zsh", "fish")
