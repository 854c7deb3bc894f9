"""The ways in. A door decodes to a request, hands it to the dispatcher, and encodes the answer."""
