"""What moves packets: the `tun` plane (`link`, `pump`, `counters`, `tun`), and the compatible one, `nfqueue`."""
