"""Events on the wire: `websocket` frames, `connection` to one relay, `pool` over many, `server` our own."""
