"""Running Hypothesis's state machines on real mounts."""

from collections.abc import Callable
from typing import cast

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def run_machine(new: Callable[[], RuleBasedStateMachine], examples: int) -> None:
    """As often as there are examples, the same ones each time; `new` makes the machine for one."""
    factory = cast(type[RuleBasedStateMachine], new)  # all it does is call it
    run_state_machine_as_test(factory, settings=settings(SETTINGS, max_examples=examples))


SETTINGS = settings(
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    # Shrinking takes minutes here, and when a change is heard of differs from run to run.
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
