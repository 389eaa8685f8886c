"""Offline to online: a replay buffer on disk, and models refreshed from it during deployment."""

from jacrec.online.config import DeployConfig, RefreshConfig, ReplayConfig
from jacrec.online.refresh import Refresher
from jacrec.online.replay_buffer import OnlineReplay, ReplayReader

__all__ = ["DeployConfig", "OnlineReplay", "RefreshConfig", "Refresher", "ReplayConfig", "ReplayReader"]
