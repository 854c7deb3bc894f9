"""The store on SQLite: `sqlite` opens it, migrates it and runs transactions; one module per table of `handlers.tables`."""
