"""How far an instance may be trusted, in its own words: the ``t`` tag of the NECs."""

from enum import Enum

from nips.errors import BadInput
from nips.event import Event


class BadEnv(BadInput):
    """The ``t`` tag is missing, ambiguous, or contradicts the evidence."""


class Env(Enum):
    """PROD is signed for by builder, launcher and maintainers; DEBUG can be read by its host."""

    PROD = "prod"
    DEV = "dev"
    DEBUG = "debug"


def env_of(event: Event) -> Env:
    """The one environment that an event names. Raises `BadEnv`; other ``t`` tags are hashtags."""
    named = {t for t in event.tag_values("t") if t in {env.value for env in Env}}
    if len(named) != 1:
        raise BadEnv("t does not name exactly one of prod, dev, debug")
    return Env(named.pop())


def signs_for(event: Event) -> frozenset[Env]:
    """The environments that a builder, launcher or maintainer signs for; there may be several."""
    return frozenset(env for env in Env if env.value in event.tag_values("t"))
