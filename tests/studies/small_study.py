"""The content of a small spec, and variants of it."""

SMALL = {
    "name": "small",
    "tasks": {"hopper-medium": {"data": "{task}.hdf5"}, "mine": {"data": "own/mine.npz", "env_id": "Hopper-v4"}},
    "seeds": [0, 1],
    "training": {"rebrac": {"updates": 7, "tau": "1e-2"}, "threads": 2},
    "models": {"det": {"dynamics": {"kind": "deterministic"}}},
    "evaluation": {"episodes": 3},
    "contestants": {"h0": {"horizon": 0}, "mpc": {"lr": "5e-5"}, "one": {"model": "det", "horizon": 1}},
}


def changed(**changes):
    """SMALL with other top-level settings."""
    return SMALL | changes


def rehearsing(**own):
    """SMALL with a contestant "best" of these settings."""
    return changed(contestants=SMALL["contestants"] | {"best": own})


REHEARSING = SMALL["contestants"] | {"best": {"rehearse": ["mpc", "h0"]}}
