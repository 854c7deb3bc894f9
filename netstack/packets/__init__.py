"""Packets as bytes, pure: headers, what may pass, the frames on the stream, what passed before, datagrams joined."""
