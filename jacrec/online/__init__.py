"""Offline to online: the controller's replay on disk, and world and reward models refreshed from it during deployment."""

from jacrec.online.config import DeployConfig, RefreshConfig, ReplayConfig
from jacrec.online.refresh import Refresher
from jacrec.online.replay import OnlineReplay, ReplayReader

__all__ = ["DeployConfig", "OnlineReplay", "RefreshConfig", "Refresher", "ReplayConfig", "ReplayReader"]
