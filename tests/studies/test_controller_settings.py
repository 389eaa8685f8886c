"""Settings of a contestant's controller in a study: the experimental group, and settings of earlier versions."""

import pytest

from jacrec.control.config import MPCConfig
from jacrec.experimental.config import ExperimentalConfig, with_experimental
from jacrec.studies.spec import parse_study, to_yaml
from tests.studies.small_study import SMALL, changed


def test_a_contestant_may_have_an_experimental_update_rule():
    gate = {"horizon": 3, "experimental": {"min_signal": 1.0}}
    tuned = {"gate": {"experimental": {"max_particles": 64}}}
    study = parse_study(
        changed(
            contestants=SMALL["contestants"] | {"gate": gate},
            tasks={"hopper-medium": {"contestants": tuned}, "hopper-expert": None},
        )
    )
    own = with_experimental(MPCConfig(horizon=3), ExperimentalConfig(min_signal=1.0))
    assert study.controller("hopper-expert", "gate") == own
    both = ExperimentalConfig(min_signal=1.0, max_particles=64)
    assert study.controller("hopper-medium", "gate") == with_experimental(MPCConfig(horizon=3), both)
    assert parse_study(to_yaml(study)) == study


def test_a_study_of_an_earlier_version_is_read_where_it_means_the_same():
    study = parse_study(SMALL)
    content = to_yaml(study)
    content["contestants"]["mpc"] |= {"think_every": 1, "max_growth": None, "min_signal": None, "step": "plain"}
    content["tasks"]["mine"]["training"]["dynamics"]["solver"] = "euler"
    assert parse_study(content) == study
    for setting, message in (
        ({"think_every": 2}, r"contestants\.mpc\.think_every: .* removed"),
        ({"min_signal": 1.0}, r"contestants\.mpc\.min_signal: .* experimental\.min_signal"),
    ):
        changed_one = content["contestants"] | {"mpc": content["contestants"]["mpc"] | setting}
        with pytest.raises(ValueError, match=message):
            parse_study(content | {"contestants": changed_one})
    content["tasks"]["mine"]["training"]["dynamics"]["solver"] = "heun"
    with pytest.raises(ValueError, match=r"mine\.training\.dynamics: expected solver .euler.* got 'heun'"):
        parse_study(content)
