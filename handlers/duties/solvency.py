"""Whether the wallet holds what is owed. Where it does not, no more money is taken, and it is said why."""

from handlers.alarms import Alarm
from handlers.context import Context
from handlers.domain.ledger import MAIN_WALLET
from handlers.domain.pricing import sat_floor
from handlers.ports import WalletProblem


class Solvency:
    """Short twice in a row is short: once may be a payment between the two questions."""

    def __init__(self) -> None:
        self._was_short = False

    async def check(self, ctx: Context) -> None:
        """Compare the wallet's balance with what tenants could ask back from it."""
        held_msat = await ctx.wallet.balance(None)
        if isinstance(held_msat, WalletProblem):
            # It does not say, which proves nothing either way; it is asked again.
            return
        # What is on its way out may have left the wallet already, so only the rest must be there.
        owed_msat = await ctx.store.read(lambda tx: tx.ledger.owed_from(MAIN_WALLET))
        short, was_short, self._was_short = (
            held_msat < owed_msat,
            self._was_short,
            held_msat < owed_msat,
        )
        if short and was_short:
            reason = f"it holds {sat_floor(held_msat)} sat and owes {sat_floor(owed_msat)} sat"
            ctx.alarms.set(Alarm.SOLVENCY, reason)
        elif not short:
            ctx.alarms.set(Alarm.SOLVENCY, None)
