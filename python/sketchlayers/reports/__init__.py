"""Reports of compressions and inspections: tables, plots, JSON."""
