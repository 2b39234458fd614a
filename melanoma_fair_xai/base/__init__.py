"""What everybody needs: errors, files, seeding, tables, the Hub's client. It knows nothing of the other rooms."""
