"""What is shown of runs: tables, claims, figures, and one page of everything."""
