"""Importers: what other tools wrote, as an EventGraph. Each lives in a file of its own."""
