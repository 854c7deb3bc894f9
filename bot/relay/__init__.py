"""Events on the wire. As a client: `connection` to one relay, `pool` over many, `courier` for one visit.

Our own relay is `server`. Who comes in passes the `gate` and is a guest (`guests`); what he wants to hear stands in
`subscriptions`, what is stored lies in `event_tables`, written by `event_store` and read by `reader` in `turns`, one
`event_search` per filter. Both ends speak through `websocket`.
"""
