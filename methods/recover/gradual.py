"""The targets of a gradual schedule: prune a little, recover, prune deeper (Zhu and Gupta, arXiv 1710.01878)."""

from __future__ import annotations

from fractions import Fraction

from methods.target import Target

__all__ = ["stage_targets", "steps_of_stages"]


def stage_targets(target: Target, stages: int) -> tuple[Target, ...]:
    """What each of ``stages`` prunings aims at, the last at ``target`` itself.

    Zhu and Gupta's cubic s_t = s_f (1 - (1 - t/N)^3), t = 1 … N, in exact fractions: most weights go while
    many are left. Sizes (``params-``, ``bytes-``) and slices follow it in the share that they save. N:M goes
    through patterns that keep more of the same M, rounded to more, but never all: zeros anywhere would lie so that
    some groups end with fewer than N weights. 2:4 thus goes by 3:4, which several stages may aim at.
    """
    risen = [1 - (1 - Fraction(stage, stages)) ** 3 for stage in range(1, stages)]
    if target.kind == "nm":
        most = target.group - target.keep
        gone = [max(1, int(most * share)) for share in risen]
        return (*(Target.nm(target.group - count, target.group) for count in gone), target)
    return (*(Target(target.kind, target.amount * share) for share in risen), target)


def steps_of_stages(steps: int, stages: int) -> tuple[int, ...]:
    """``steps`` of training shared out over the stages, the remainder over the last ones, which lost most."""
    share, more = divmod(steps, stages)
    return tuple(share + (stage >= stages - more) for stage in range(stages))
