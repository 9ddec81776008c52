"""Schedules: pure functions of progress in [0, 1)."""

import math

from lipcert.config import TrainConfig
from lipcert.radius import Radius


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Linear warm-up from 0 to `lr`, then half a cosine (or half constant and half exponential) to `lr * lr_end`."""
    if progress < config.warmup:
        return config.lr * progress / config.warmup
    after = (progress - config.warmup) / (1 - config.warmup)
    if config.lr_schedule == "cosine":
        return config.lr * (config.lr_end + (1 - config.lr_end) * (1 + math.cos(math.pi * after)) / 2)
    end = max(config.lr_end, 1e-12)
    return config.lr * (1.0 if after < 0.5 else end ** (2 * after - 1))


def training_radius(config: TrainConfig, progress: float) -> float:
    """Linear from `radius_start` to `radius_end` (factors of `radius`) over the first `radius_ramp` of the run."""
    share = 1.0 if config.radius_ramp == 0 else min(progress / config.radius_ramp, 1.0)
    factor = config.radius_start + (config.radius_end - config.radius_start) * share
    return float(Radius(config.radius)) * factor
