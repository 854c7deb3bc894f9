"""``quote``: what would this image cost, and what would it get?"""

import secrets
from dataclasses import dataclass
from typing import Any

from handlers.commands.release import (
    check_release,
    image_refusal,
    read_labels,
    release_result,
    tell_signers,
)
from handlers.context import Caller, Context
from handlers.domain.image import ImageRef
from handlers.domain.limits import Limits, image_fits, limits_for
from handlers.domain.ports_pool import MAX_PORTS_PER_CONTAINER
from handlers.domain.pricing import sat_ceil
from handlers.domain.quote import Quote
from handlers.errors import Refusal, invalid
from handlers.params import IMAGE, integer, param
from handlers.ports import ImageProblem, ResolvedImage
from handlers.transitions import held_units

MAX_VOLUMES = 8


@dataclass(frozen=True)
class QuoteParams:
    """The image, and how many units it is to have."""

    docker: ImageRef = param(IMAGE)
    units: int = param(integer(1, 50), 1)


async def quote(ctx: Context, caller: Caller, params: QuoteParams) -> dict[str, Any] | Refusal:
    """Resolve the image to a digest, price it, and see who signed it; kept for some minutes."""
    found = await resolve(ctx, caller, params.docker, params.units)
    if isinstance(found, Refusal):
        return found
    made = price(ctx, found, params.units)
    report = await check_release(ctx.events, found)
    now = ctx.clock.now()
    await ctx.store.write(lambda tx: tx.quotes.add(made, now))
    free = max(0, ctx.policy.capacity.total_units - await ctx.store.read(held_units))
    result = quote_result(made, limits_for(made.units, ctx.policy.unit_size), free)
    return result | {"release": release_result(report)}


async def resolve(
    ctx: Context, caller: Caller, ref: ImageRef, units: int
) -> ResolvedImage | Refusal:
    """The image, if it can be had and fits into so many units."""
    if units > ctx.policy.capacity.max_units_per_container:
        return invalid(
            f"at most {ctx.policy.capacity.max_units_per_container} units per container"
        )
    found = await ctx.registry.resolve(ref, caller.pubkey)
    if isinstance(found, ImageProblem):
        return image_refusal(ref, found)
    problem = _unfit(found, limits_for(units, ctx.policy.unit_size))
    if problem is not None:
        return invalid(f"{ref}: {problem}")
    return found


def price(ctx: Context, found: ResolvedImage, units: int) -> Quote:
    """A quote that is not stored yet."""
    labels = read_labels(found.labels)
    return Quote(
        quote_id=secrets.token_hex(16),
        image=found.ref.pinned(found.digest),
        asked_for=str(found.ref),
        units=units,
        tariff=ctx.policy.tariff,
        compressed_bytes=found.compressed_bytes,
        ports=found.ports,
        volumes=found.volumes,
        signers=labels.signers,
        version=labels.version or None,
        expires_at=ctx.clock.now() + ctx.policy.quote_valid_s,
    )


def quote_result(made: Quote, limits: Limits, units_free: int) -> dict[str, Any]:
    """The JSON of a quote. Prices in sat are rounded up, as the invoice will be."""
    return {
        "quote_id": made.quote_id,
        "image": made.image,
        "units": made.units,
        "price_sat": sat_ceil(made.tariff.interval_msat(made.units)),
        "price_msat_per_unit": made.tariff.price_msat,
        "interval_s": made.tariff.interval_s,
        "expires_at": made.expires_at,
        "units_free": units_free,
        "compressed_bytes": made.compressed_bytes,
        "signers": list(made.signers),
        "version": made.version,
        "ports": list(made.ports),
        "limits": {
            "cpu_cores": limits.cpu_quota_us / 100_000,
            "memory_bytes": limits.memory_bytes,
            "pids": limits.pids,
            "disk_bytes": limits.disk_bytes,
            "volume_bytes": limits.volume_bytes,
        },
    }


def tell_quote(result: dict[str, Any]) -> str:
    """The quote in words."""
    limits = result["limits"]
    return (
        f"{result['image']} with {result['units']} units: {result['price_sat']} sat per "
        f"{result['interval_s']} s, metered by the second. {limits['cpu_cores']:g} CPU, "
        f"{limits['memory_bytes'] // 1_000_000} MB memory, {limits['pids']} processes, "
        f"{limits['disk_bytes'] // 1_000_000} MB disk. {result['units_free']} units are free. "
        f"Code: {tell_signers(result['release'])}"
    )


def _unfit(found: ResolvedImage, limits: Limits) -> str | None:
    if not image_fits(found.compressed_bytes, limits):
        return f"the image has {found.compressed_bytes} bytes compressed, too many for the disk; take more units"
    if len(found.ports) > MAX_PORTS_PER_CONTAINER:
        return f"the image exposes more than {MAX_PORTS_PER_CONTAINER} ports"
    if len(found.volumes) > MAX_VOLUMES:
        return f"the image has more than {MAX_VOLUMES} volumes"
    return None
