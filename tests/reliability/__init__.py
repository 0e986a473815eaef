"""What attacks the promises of docs/reliability.md: ``make reliability`` runs all of it to a table, CI a short part."""
