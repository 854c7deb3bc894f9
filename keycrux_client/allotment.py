"""Which service has which part of a split. A part belongs to one service as long as that may still have it: with two holders of
one part, two majorities need have nobody in common."""

from collections.abc import Mapping

from keycrux_client.discovery import Service
from keycrux_client.fence import Holders
from keycrux_client.protocol import LIFE_S
from keycrux_client.shares import Part, Split, Stored


class Allotment:
    """``holders``: who had which part before, and when it was last heard of; one that is silent now may still have its."""

    def __init__(self, split: Split, holders: Holders | None = None) -> None:
        self.split = split
        self._holders: dict[str, tuple[int, int]] = dict(holders or {})

    @property
    def holders(self) -> Holders:
        """As of now."""
        return dict(self._holders)

    def give(self, held: Mapping[Service, Stored | None], now: int) -> dict[Service, Part]:
        """The part that each of these is to keep: its own, or one that nobody else has."""
        self._holders = {p: at for p, at in self._holders.items() if now - at[1] < LIFE_S}
        indices: dict[Service, int] = {}
        # Those that hold a part keep it; only then are the others given what is left.
        for choose in (self._kept, self._free):
            for service in (s for s in held if s not in indices):
                index = choose(service, held[service])
                if index is not None:
                    self._holders[service.pubkey] = (index, now)
                    indices[service] = index
        return {service: self.split.part(index) for service, index in indices.items()}

    def _kept(self, service: Service, value: Stored | None) -> int | None:
        kept, _ = self._holders.get(service.pubkey, (None, 0))
        if kept is None and value is not None:
            kept = next((p.index for p in value.parts if p.set_id == self.split.set_id), None)
        return kept if kept not in self._taken(service) else None

    def _free(self, service: Service, _: Stored | None) -> int | None:
        taken = self._taken(service)
        return next((index for index in range(len(self.split.parts)) if index not in taken), None)

    def _taken(self, service: Service) -> set[int]:
        """Parts of others; a whole copy is for everybody."""
        others = {index for p, (index, _) in self._holders.items() if p != service.pubkey}
        return others if self.split.threshold > 1 else set()
