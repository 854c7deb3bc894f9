"""What the server does: one module per command, and the one table that lists them.

- `ROUTES` is the table: doors decode to a method and parameters, the dispatcher finds the row here.
- A handler is ``async (Context, Caller, Params) -> Result | Refusal``. It reaches the world only
  through the Protocols in `ports`, and writes state only in `Store.write`, one transaction each.
- `transitions` moves a container along its lifecycle; it is the only writer of ``state``.
- The automatic ones have no row: `settle` and `outgoing` follow payments, `charge` meters, `upkeep`
  lets things expire, `reconcile` makes the engine match, `announce` tells the world, `zap` is LNURL.
- `domain` holds the rules, as plain Python.
"""

from handlers.commands.attest import AttestParams, attest
from handlers.commands.balance import BalanceParams, balance, tell_balance
from handlers.commands.deploy import DeployParams, deploy, tell_deploy
from handlers.commands.help import HelpParams, help_for, tell_help
from handlers.commands.info import InfoParams, info
from handlers.commands.list import ListParams, list_containers
from handlers.commands.logs import LogsParams, logs
from handlers.commands.ping import PingParams, ping
from handlers.commands.quote import QuoteParams, quote, tell_quote
from handlers.commands.release import ReleaseParams, release, tell_release
from handlers.commands.restart import RestartParams, restart, tell_restart
from handlers.commands.stop import StopParams, stop, tell_stop
from handlers.commands.topup import TopupParams, tell_topup, topup
from handlers.commands.withdraw import WithdrawParams, withdraw
from handlers.domain.lane import WaitsFor
from handlers.routes import Route

ROUTES: tuple[Route, ...] = (
    Route("ping", PingParams, ping, "Is anybody there?", '"pong"', str),
    Route("help", HelpParams, help_for(lambda: ROUTES), "The commands, or one of them in full.", "commands", tell_help),
    Route("quote", QuoteParams, quote, "What an image would cost and get.",
          "quote_id, image (pinned), units, price_sat, interval_s, limits, signers, release, units_free, …", tell_quote, waits_for=WaitsFor.REGISTRY),
    Route("release", ReleaseParams, release, "Who signed an image, by its labels and its signers' relays.",
          "image (pinned), repo, version, image_id, signers, signed_by_all, newer", tell_release, waits_for=WaitsFor.REGISTRY),
    Route("attest", AttestParams, attest, "Proof over your nonce that this key lives in the enclave, now.",
          "nonce, not_after, tee_root (a 23793 event)", waits_for=WaitsFor.MODULE),
    Route("deploy", DeployParams, deploy, "Reserve a place for an image; it starts when the invoice is paid.",
          "pubkey, npub, invoice (as NIP-47's make_invoice)", tell_deploy, waits_for=WaitsFor.REGISTRY, aliases=("launch",)),
    Route("topup", TopupParams, topup, "An invoice that feeds a container's balance; anybody may pay.",
          "pubkey, invoice", tell_topup, waits_for=WaitsFor.INVOICE),
    Route("balance", BalanceParams, balance, "What is left and how long it lasts.",
          "state, detail, balance_msat, balance_sat, lasts_s, withdrawable_sat", tell_balance),
    Route("withdraw", WithdrawParams, withdraw, "Pay the balance out to an invoice.",
          "payment_id, payment_hash, amount_sat, state (settled, unknown), preimage", waits_for=WaitsFor.PAYMENT, admin_only=True),
    Route("list", ListParams, list_containers, "Your containers.", "containers"),
    Route("info", InfoParams, info, "All about one container.",
          "state, detail, reason, image, units, endpoints, balance_msat, …", admin_only=True),
    Route("logs", LogsParams, logs, "The last lines that a container wrote.", "logs, truncated", admin_only=True),
    Route("restart", RestartParams, restart, "Start a container anew; volumes are kept.",
          "state, generation", tell_restart, admin_only=True),
    Route("stop", StopParams, stop, "Delete a container and its volumes; the balance stays yours.",
          "state, balance_sat, confirm", tell_stop, admin_only=True),
)  # fmt: skip
BY_NAME: dict[str, Route] = {
    name: route for route in ROUTES for name in (route.method, *route.aliases)
}
